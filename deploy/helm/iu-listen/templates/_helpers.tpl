{{/* Rules that a schema cannot express, or not with a message that names the remedy. */}}
{{- define "iu-listen.check" -}}
{{- if eq .Values.image.tag "latest" -}}
{{- fail "image.tag: latest is no version, and its image may change at any time. Give a version, or a digest as image.digest." -}}
{{- end -}}
{{- range $name, $value := .Values.env -}}
{{- if not (regexMatch "^[A-Za-z_][A-Za-z0-9_]*$" $name) -}}
{{- fail (printf "env.%s: the name of a variable has only letters, digits and _." $name) -}}
{{- end -}}
{{- if has $name (list "IU_LISTEN_APP" "IU_LISTEN_SECRETS" "IU_LISTEN_ALLOW_PRIVATE") -}}
{{- fail (printf "env.%s: the chart sets this variable. Use liveRoutes." $name) -}}
{{- end -}}
{{- if regexMatch "PASSWORD|PASSPHRASE|TOKEN|_HEADERS$|_DSN$|^PG" $name -}}
{{- fail (printf "env.%s: the value may contain a secret, and the values of a release are readable. Create a secret with this key, and name the secret in envFromSecrets." $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := .Values.podLabels -}}
{{- if regexMatch "^(app[.]kubernetes[.]io|helm[.]sh)/" $name -}}
{{- fail (printf "podLabels.%s: the chart sets the labels of app.kubernetes.io and helm.sh. Remove it." $name) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The name of all objects, without a suffix. With it, a name may have 52 characters, which is the limit of a CronJob. */}}
{{- define "iu-listen.name" -}}
{{- $name := ternary .Release.Name (printf "%s-iu-listen" .Release.Name) (contains "iu-listen" .Release.Name) -}}
{{- .Values.fullnameOverride | default $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* The labels by which the pods of a release are selected. */}}
{{- define "iu-listen.all" -}}
app.kubernetes.io/name: iu-listen
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The labels by which the consumers of a release are selected. They never change, because a selector cannot change. */}}
{{- define "iu-listen.consumers" -}}
{{ include "iu-listen.all" . }}
app.kubernetes.io/component: consumer
{{- end }}

{{/* The labels of an object. Takes a list: the root, and the component. */}}
{{- define "iu-listen.labels" -}}
{{- $root := index . 0 -}}
{{ include "iu-listen.all" $root }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "iu-listen.serviceAccount" -}}
{{- $default := ternary (include "iu-listen.name" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $default -}}
{{- end }}

{{- define "iu-listen.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The metadata of pods. Takes a list: the root, and the component. */}}
{{- define "iu-listen.podMetadata" -}}
{{- $values := (index . 0).Values -}}
labels:
  {{- include "iu-listen.labels" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The part of a pod that the consumer and the retention have in common. */}}
{{- define "iu-listen.pod" -}}
serviceAccountName: {{ include "iu-listen.serviceAccount" . }}
# Nothing here uses the Kubernetes API.
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  # Makes the secrets readable only for the group of the process.
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- range $field, $value := pick .Values "priorityClassName" "nodeSelector" "tolerations" "affinity" }}
{{- with $value }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The part of a container that the consumer and the retention have in common. */}}
{{- define "iu-listen.container" -}}
image: {{ include "iu-listen.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  privileged: false
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Host, user and password are in the secret, as a service file. PGPASSFILE cannot be used: a mounted secret is readable
     for its group, and a password file with that mode is ignored. */}}
{{- define "iu-listen.databaseEnv" -}}
- name: IU_LISTEN_DSN
  value: postgresql://?service={{ .Values.database.service }}
- name: PGSERVICEFILE
  value: /run/secrets/iu-listen/pg_service.conf
{{- end }}

{{/* The service file in a container. */}}
{{- define "iu-listen.databaseMount" -}}
- name: database
  mountPath: /run/secrets/iu-listen
  readOnly: true
{{- end }}

{{/* A volume from a secret. Takes a list: the name of the volume, and the name of the secret. */}}
{{- define "iu-listen.secretVolume" -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0440
{{- end }}
