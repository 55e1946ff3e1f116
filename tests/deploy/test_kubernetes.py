"""deploy/kubernetes: checks against the schemas of Kubernetes, and rules that a schema cannot express."""

from __future__ import annotations

import configparser
import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from iu_listen import __version__
from iu_listen.model.settings import Settings
from iu_listen.telemetry.health_endpoint import parse_address

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
MANIFESTS: dict[str, dict[str, Any]] = {
    path.name: yaml.safe_load(path.read_text())
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
}
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
DEPLOYMENT = MANIFESTS["deployment.yaml"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
LABELS = DEPLOYMENT["spec"]["selector"]["matchLabels"]
ENVIRONMENT: dict[str, str] = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
JOB = MANIFESTS["retention.yaml"]["spec"]["jobTemplate"]["spec"]
#: The oldest version that was maintained when this was written, and the newest one of the schemas.
VERSIONS = ("1.32", "1.37")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_knows_every_field(name: str, version: str) -> None:
    """Each manifest fits the strict schema of its kind: no misspelt field, no missing field, no wrong type."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_the_kustomization_has_everything_but_the_secret() -> None:
    """Every manifest is applied, except the example of the secret."""
    assert {*KUSTOMIZATION["resources"], "secret.example.yaml"} == MANIFESTS.keys()


LIVE = {path.name: yaml.safe_load(path.read_text()) for path in sorted((FOLDER / "live-routes").glob("*.yaml"))}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["consumer.yaml", "networkpolicy.yaml"])
def test_kubernetes_knows_the_component_of_live_routes(name: str, version: str) -> None:
    """The policy fits its schema, and so does the deployment with the patch."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    manifest = LIVE[name]
    if name == "consumer.yaml":
        patch = manifest["spec"]["template"]["spec"]
        manifest = copy.deepcopy(DEPLOYMENT)
        pod = manifest["spec"]["template"]["spec"]
        pod["volumes"] += patch["volumes"]
        for field in ("env", "volumeMounts"):
            pod["containers"][0][field] += patch["containers"][0][field]
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_component_of_live_routes_fits_the_deployment() -> None:
    """It patches the existing container, its policy selects the consumers, and deliveries go to public addresses only.

    Fails when: the container is renamed, or every address is permitted.
    """
    (container,) = LIVE["consumer.yaml"]["spec"]["template"]["spec"]["containers"]
    assert container["name"] == CONTAINER["name"]
    policy = LIVE["networkpolicy.yaml"]["spec"]
    assert policy["podSelector"]["matchLabels"] == LABELS
    (rule,) = policy["egress"]
    assert {port["port"] for port in rule["ports"]} == {443, 4222, 6379, 9092}
    assert all(block["ipBlock"]["except"] for block in rule["to"])
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["IU_LISTEN_SECRETS"] == container["volumeMounts"][0]["mountPath"]
    Settings.load(environment)
    text = (FOLDER / "live-routes" / "consumer.yaml").read_text()
    assert set(re.findall(r"IU_LISTEN_(\w+)", text)) >= {"APP", "SECRETS", "ALLOW_PRIVATE"}


def test_no_manifest_names_a_namespace() -> None:
    """No manifest names a namespace: the user who applies it decides."""
    assert not any("namespace" in manifest["metadata"] for manifest in MANIFESTS.values())
    assert "namespace" not in KUSTOMIZATION


def test_manifests_need_no_features_of_yaml() -> None:
    """No anchors, aliases or merge keys, because not every tool for manifests supports them."""
    for name in MANIFESTS:
        assert not re.search(r"(: |- )[&*]\w|<<:", (FOLDER / name).read_text()), name


def test_everything_selects_the_same_pods() -> None:
    """Deployment, disruption budget and spread select by the labels of the pods; the network policy selects all."""
    assert DEPLOYMENT["spec"]["template"]["metadata"]["labels"] == LABELS
    assert MANIFESTS["poddisruptionbudget.yaml"]["spec"]["selector"]["matchLabels"] == LABELS
    ours = MANIFESTS["networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"].items()
    assert ours <= LABELS.items()
    assert ours <= JOB["template"]["metadata"]["labels"].items()
    # No disruption budget and no spread counts a pod of the retention as a consumer.
    assert not LABELS.items() <= JOB["template"]["metadata"]["labels"].items()
    assert [spread["labelSelector"]["matchLabels"] for spread in POD["topologySpreadConstraints"]] == [LABELS]


def test_one_always_stands_by() -> None:
    """There are two consumers; a rollout adds one before it removes one, and a drain removes one at a time."""
    assert DEPLOYMENT["spec"]["replicas"] == 2
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert MANIFESTS["poddisruptionbudget.yaml"]["spec"]["maxUnavailable"] == 1


def test_the_container_may_do_next_to_nothing() -> None:
    """No root, writable path, capability, escalation, token or service links; the runtime's seccomp profile."""
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] >= 10_000
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "privileged": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(mount["readOnly"] for mount in CONTAINER["volumeMounts"])
    assert POD["automountServiceAccountToken"] is False
    assert MANIFESTS["serviceaccount.yaml"]["automountServiceAccountToken"] is False
    assert POD["serviceAccountName"] == MANIFESTS["serviceaccount.yaml"]["metadata"]["name"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & POD.keys()


def test_memory_is_bounded_and_cpu_is_not_throttled() -> None:
    """Requests for both resources, a limit for memory only, because a throttled consumer is late."""
    resources = CONTAINER["resources"]
    assert resources["requests"].keys() == {"cpu", "memory"}
    assert resources["limits"].keys() == {"memory"}


def test_a_stop_is_given_the_time_that_it_may_take() -> None:
    """The grace period of the pod is longer than the consumer's and than the deadline of the batch that ends first."""
    settings = Settings.load(ENVIRONMENT)
    assert POD["terminationGracePeriodSeconds"] > max(settings.grace_period, settings.batch_deadline)
    assert CONTAINER["args"] == ["run"]
    # The entrypoint of the image is kept: it is iu-listen itself, so it gets the signal.
    assert "command" not in CONTAINER


def test_probes_ask_the_consumer_for_its_progress() -> None:
    """All three probes ask the endpoint of the consumer; readiness is the strictest, and no batch is cut off.

    Fails when: a probe names a path or a port that the consumer does not serve, or a long batch restarts the pod.
    """
    settings = Settings.load(ENVIRONMENT)
    (port,) = CONTAINER["ports"]
    assert parse_address(settings.http) == ("0.0.0.0", port["containerPort"])
    paths = {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    for name, path in paths.items():
        assert CONTAINER[name]["httpGet"] == {"path": path, "port": port["name"]}, name
    liveness, readiness = CONTAINER["livenessProbe"], CONTAINER["readinessProbe"]
    assert liveness["failureThreshold"] > readiness["failureThreshold"]
    patience = liveness["failureThreshold"] * liveness["periodSeconds"]
    assert patience > settings.batch_deadline + settings.reconnect_max + 3 * settings.catch_up


def test_the_image_is_ours_and_has_a_version() -> None:
    """The tag is the version of this repository, and never latest."""
    assert CONTAINER["image"] == f"iu-listen:{__version__}"


def test_the_secret_is_an_example() -> None:
    """The example has no password and no certificate, and exactly the keys and the service that the pod uses."""
    secret = MANIFESTS["secret.example.yaml"]
    (volume,) = POD["volumes"]
    assert volume["secret"] == {"secretName": secret["metadata"]["name"], "defaultMode": 0o440}
    (mount,) = CONTAINER["volumeMounts"]
    where, _, file = ENVIRONMENT["PGSERVICEFILE"].rpartition("/")
    assert (mount["name"], mount["mountPath"]) == (volume["name"], where)
    assert secret["stringData"].keys() == {file, "ca.crt"}
    assert secret["stringData"]["ca.crt"] == ""
    service = configparser.ConfigParser()
    service.read_string(secret["stringData"][file])
    assert service.sections() == [ENVIRONMENT["IU_LISTEN_DSN"].rpartition("=")[2]]
    assert service["iu_listen"]["password"] == ""
    assert service["iu_listen"]["sslrootcert"] == f"{where}/ca.crt"


def test_nothing_comes_in_and_little_goes_out() -> None:
    """The network policy covers both directions; permitted are DNS, PostgreSQL and OTLP, each with its ports."""
    policy = MANIFESTS["networkpolicy.yaml"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["ingress"] == []
    assert all(rule.get("ports") for rule in policy["egress"])
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 5432, 4317, 4318}
    # The port of the probes: the node may always connect to its own pods.
    assert [port["name"] for port in CONTAINER["ports"]] == ["http"]


def test_the_retention_may_do_no_more_than_the_consumer() -> None:
    """The retention's pod has the restrictions, image and service file of the consumer's, and its own secret."""
    pod = JOB["template"]["spec"]
    (container,) = pod["containers"]
    for key in ("securityContext", "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks"):
        assert pod[key] == POD[key], key
    for key in ("securityContext", "image", "volumeMounts"):
        assert container[key] == CONTAINER[key], key
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment.items() <= ENVIRONMENT.items()
    assert pod["volumes"][0]["secret"]["secretName"] != POD["volumes"][0]["secret"]["secretName"]


def test_the_retention_is_off_until_somebody_wants_it() -> None:
    """The job is suspended, runs one at a time, is not retried, and its arguments are a valid command line."""
    spec = MANIFESTS["retention.yaml"]["spec"]
    assert (spec["suspend"], spec["concurrencyPolicy"], JOB["backoffLimit"]) == (True, "Forbid", 0)
    (container,) = JOB["template"]["spec"]["containers"]
    assert container["args"] == ["retention", "run", "--yes"]
    assert "command" not in container
