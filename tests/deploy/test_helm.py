"""deploy/helm: the rendered chart, compared with deploy/kubernetes and with the schemas of Kubernetes."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.test_kubernetes import LIVE, MANIFESTS, VERSIONS
from iu_listen import __version__
from iu_listen.model.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "helm" / "iu-listen"
CHART: dict[str, Any] = yaml.safe_load((FOLDER / "Chart.yaml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((FOLDER / "values.schema.json").read_text())

#: Values with which the chart makes all objects of deploy/kubernetes and of its component of live routes.
EVERYTHING: dict[str, Any] = {"retention": {"enabled": True}, "liveRoutes": {"enabled": True}}
#: Values that are empty by default, each with an example.
EXAMPLES: dict[str, Any] = {
    **EVERYTHING,
    "image": {"repository": "registry.example/iu-listen", "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": ["registry"],
    "fullnameOverride": "orders",
    "replicas": 1,
    "env": {"IU_LISTEN_WORKER": "orders", "IU_LISTEN_PREFETCH_BYTES": "67108864"},
    "envFromSecrets": ["collector"],
    "serviceAccount": {"annotations": {"example/role": "orders"}},
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "networkPolicy": {
        "database": {"port": 6432, "to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}]},
        "otlp": {"ports": [4318], "to": [{"namespaceSelector": {"matchLabels": {"name": "tracing"}}}]},
        "ingress": [{"ports": [{"protocol": "TCP", "port": 9464}]}],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "crm"}}}]}],
    },
    "liveRoutes": {"enabled": True, "app": "shop.targets", "allowPrivate": ["crm.shop.svc", "10.2.0.0/16"]},
    "podLabels": {"team": "orders"},
    "podAnnotations": {"example/scrape": "false"},
    "priorityClassName": "high",
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "orders", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
}

Manifests = dict[tuple[str, str], dict[str, Any]]


@cache
def helm() -> str:
    """The program helm: that of `make`, or one on PATH. Without one, the test is skipped."""
    made = ROOT / ".helm" / "helm"
    found = str(made) if made.is_file() else shutil.which("helm")
    if found is None:
        pytest.skip("there is no helm: make test gets it on Linux for x86-64; elsewhere it must be on PATH")
    return found


def run(*arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm; the values are read from its standard input."""
    return subprocess.run(
        [helm(), *arguments, "--values", "-"],
        input=json.dumps(values or {}), capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("TMPDIR", "/tmp")},
    )  # fmt: skip


def render(values: dict[str, Any] | None = None, release: str = "iu-listen") -> Manifests:
    """The objects of a release, by kind and name."""
    done = run("template", release, str(FOLDER), values=values)
    assert done.returncode == 0, done.stderr
    found = [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]
    manifests = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in found}
    assert len(manifests) == len(found)
    return manifests


def consumer(manifests: Manifests) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod of the deployment, and its container."""
    (deployment,) = (manifest for (kind, _), manifest in manifests.items() if kind == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def environment(manifests: Manifests) -> dict[str, str]:
    """The variables of the consumer."""
    return {entry["name"]: entry["value"] for entry in consumer(manifests)[1]["env"]}


def plain(node: Any) -> Any:
    """A manifest in a form for comparisons: without what only helm adds, and with variables in the order of names."""
    added = ("app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart")
    if isinstance(node, dict):
        return {
            key: sorted(value, key=lambda entry: entry["name"]) if key == "env" else plain(value)
            for key, value in node.items()
            if key not in added and (key, value) != ("imagePullPolicy", "IfNotPresent")
        }
    return [plain(item) for item in node] if isinstance(node, list) else node


def test_the_chart_has_the_version_of_the_package() -> None:
    """Version and appVersion of the chart are the version of the package, which is the default tag of the image.

    Fails when: the chart is left out of a release.
    """
    assert (CHART["version"], CHART["appVersion"]) == (__version__, __version__)
    assert VALUES["image"]["tag"] == ""
    assert CHART["kubeVersion"] == f">={VERSIONS[0]}.0-0"


@pytest.mark.parametrize("values", [{}, EXAMPLES], ids=["defaults", "examples"])
def test_helm_accepts_the_chart(values: dict[str, Any]) -> None:
    """Helm lint finds no error and no warning."""
    done = run("lint", "--strict", str(FOLDER), values=values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_makes_the_objects_of_the_kustomization() -> None:
    """With retention the chart makes the manifests of deploy/kubernetes, except the secret; only labels are added.

    The retention runs where it is enabled; in deploy/kubernetes it is suspended. Fails when: a field is changed in one of
    the two.
    """
    expected = {
        (manifest["kind"], manifest["metadata"]["name"]): copy.deepcopy(manifest)
        for manifest in MANIFESTS.values()
        if manifest["kind"] != "Secret"
    }
    del expected["CronJob", "iu-listen-retention"]["spec"]["suspend"]
    assert plain(render({"retention": {"enabled": True}})) == plain(expected)


def test_live_routes_are_those_of_the_component() -> None:
    """With live routes the chart has the policy of the component, and its patch of the deployment, and nothing else.

    Fails when: a volume, a variable or a port is changed in one of the two.
    """
    manifests, before = render({"liveRoutes": {"enabled": True}}), render()
    policy = manifests.pop(("NetworkPolicy", "iu-listen-deliveries"))
    assert plain(policy) == plain(LIVE["networkpolicy.yaml"])
    patch = LIVE["consumer.yaml"]["spec"]["template"]["spec"]
    pod, container = consumer(before)
    pod["volumes"] += patch["volumes"]
    container["env"] += patch["containers"][0]["env"]
    container["volumeMounts"] += patch["containers"][0]["volumeMounts"]
    assert plain(manifests) == plain(before)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [EVERYTHING, EXAMPLES], ids=["everything", "examples"])
def test_kubernetes_knows_every_field(values: dict[str, Any], version: str) -> None:
    """Each rendered manifest fits the strict schema of its kind."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    manifests = render(values)
    assert len(manifests) == 6
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_defaults_are_inert() -> None:
    """By default there is no retention, no live route, no incoming connection, and no secret is made."""
    kinds = [kind for kind, _ in render()]
    assert sorted(kinds) == ["Deployment", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"]
    assert not any(kind == "Secret" for kind, _ in render(EXAMPLES))
    assert "IU_LISTEN_SECRETS" not in environment(render())


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"serviceAccount": {"create": False}}, "ServiceAccount"),
        ({"podDisruptionBudget": {"enabled": False}}, "PodDisruptionBudget"),
        ({"networkPolicy": {"enabled": False}, "liveRoutes": {"enabled": True}}, "NetworkPolicy"),
    ],
)
def test_objects_can_be_left_out(values: dict[str, Any], kind: str) -> None:
    """The account, the disruption budget and the policies are not made where the cluster has its own."""
    manifests = render(values)
    assert kind not in {found for found, _ in manifests}
    account = consumer(manifests)[0]["serviceAccountName"]
    assert account == ("default" if kind == "ServiceAccount" else "iu-listen")


def test_every_value_arrives() -> None:
    """Each value of the examples is in the manifests at its place."""
    manifests = render(EXAMPLES)
    pod, container = consumer(manifests)
    (job,) = (manifest for (kind, _), manifest in manifests.items() if kind == "CronJob")
    other = job["spec"]["jobTemplate"]["spec"]["template"]
    for found in (pod, other["spec"]):
        assert found["imagePullSecrets"] == [{"name": "registry"}]
        assert found["containers"][0]["image"] == f"registry.example/iu-listen@sha256:{'0' * 64}"
        for key in ("priorityClassName", "nodeSelector", "tolerations", "affinity"):
            assert found[key] == EXAMPLES[key], key
    deployment = manifests["Deployment", "orders"]["spec"]
    for template in (deployment["template"], other):
        assert EXAMPLES["podLabels"].items() <= template["metadata"]["labels"].items()
        assert template["metadata"]["annotations"] == EXAMPLES["podAnnotations"]
    assert deployment["replicas"] == 1
    assert container["envFrom"] == [{"secretRef": {"name": "collector"}}]
    settings = Settings.load(environment(manifests))
    assert (settings.worker, settings.prefetch_bytes, settings.app) == ("orders", 67_108_864, "shop.targets")
    assert environment(manifests)["IU_LISTEN_ALLOW_PRIVATE"] == "crm.shop.svc,10.2.0.0/16"
    assert manifests["ServiceAccount", "orders"]["metadata"]["annotations"] == {"example/role": "orders"}
    assert manifests["PodDisruptionBudget", "orders"]["spec"]["maxUnavailable"] == "50%"
    policy, given = manifests["NetworkPolicy", "orders"]["spec"], EXAMPLES["networkPolicy"]
    _, database, otlp, *more = policy["egress"]
    assert database == {"ports": [{"protocol": "TCP", "port": 6432}], "to": given["database"]["to"]}
    assert otlp == {"ports": [{"protocol": "TCP", "port": 4318}], "to": given["otlp"]["to"]}
    assert (policy["ingress"], more) == (given["ingress"], given["egress"])


def test_two_releases_do_not_touch_each_other() -> None:
    """Two releases in a namespace have no name in common, and no selector of one selects a pod of the other.

    Fails when: a selector lacks the name of its release.
    """
    first, second = render(EVERYTHING, "orders"), render(EVERYTHING, "invoices")
    assert first.keys() & second.keys() == set()
    pods = [
        second["Deployment", "invoices-iu-listen"]["spec"]["template"],
        second["CronJob", "invoices-iu-listen-retention"]["spec"]["jobTemplate"]["spec"]["template"],
    ]
    selectors = [found for manifest in first.values() for found in selectors_of(manifest.get("spec", {}))]
    assert len(selectors) == 5
    for selector in selectors:
        assert not any(selector.items() <= pod["metadata"]["labels"].items() for pod in pods), selector


def selectors_of(node: Any) -> list[dict[str, str]]:
    """All sets of labels by which a specification selects pods."""
    if isinstance(node, list):
        return [found for item in node for found in selectors_of(item)]
    if not isinstance(node, dict):
        return []
    here = [node["matchLabels"]] if "matchLabels" in node else []
    return here + [found for value in node.values() for found in selectors_of(value)]


def test_names_are_short_enough() -> None:
    """The names of a release with the longest name fit the limits; a CronJob has the smallest, 52 characters."""
    for _, name in render(EVERYTHING, "o" * 53):
        assert len(name) <= 52


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replica": 3}, "replica"),
        ({"image": {"tag": "latest"}}, "image.tag: latest is no version"),
        ({"image": {"digest": "0" * 64}}, "digest"),
        ({"env": {"IU_LISTEN_DSN": "postgresql://u:p@h/d"}}, "envFromSecrets"),
        ({"env": {"OTEL_EXPORTER_OTLP_HEADERS": "a=b"}}, "envFromSecrets"),
        ({"env": {"PGPASSWORD": "a"}}, "envFromSecrets"),
        ({"env": {"IU_LISTEN_SECRETS": "/etc"}}, "Use liveRoutes"),
        ({"env": {"IU_LISTEN_PREFETCH_BYTES": 67_108_864}}, "IU_LISTEN_PREFETCH_BYTES"),
        ({"env": {"a b": "c"}}, "only letters, digits and _"),
        ({"podLabels": {"app.kubernetes.io/name": "other"}}, "Remove it"),
        ({"database": {"secret": ""}}, "secret"),
        ({"liveRoutes": {"allowPrivate": "10.0.0.0/8"}}, "allowPrivate"),
    ],
)
def test_invalid_values_are_refused(values: dict[str, Any], message: str) -> None:
    """A misspelt value, a secret in plain text and a wrong type are refused with the name of the value."""
    done = run("template", "iu-listen", str(FOLDER), values=values)
    assert done.returncode != 0
    assert message in done.stderr


def test_every_value_is_in_the_schema() -> None:
    """The schema has the keys of values.yaml and no others, and the tests have an example of each value that is empty.

    Fails when: a value is added to one of the two only, so that it is refused or not checked.
    """

    def compare(values: dict[str, Any], schema: dict[str, Any]) -> None:
        assert schema["additionalProperties"] is False
        assert schema["properties"].keys() - {"global"} == values.keys()
        for key, value in values.items():
            if "properties" in schema["properties"][key]:
                compare(value, schema["properties"][key])

    compare(VALUES, SCHEMA)
    assert [key for key, value in VALUES.items() if value in ("", [], {}) and not EXAMPLES[key]] == []


def test_the_notes_name_the_secrets_and_the_gate() -> None:
    """After an installation helm prints the secrets that the pods need, and the commands that remain to be done."""
    done = run("install", "orders", str(FOLDER), "--dry-run=client", "--namespace", "shop", values=EVERYTHING)
    if "cluster unreachable" in done.stderr:
        pytest.skip("helm 3 renders the notes only with a cluster")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    secrets = (VALUES["database"]["secret"], VALUES["liveRoutes"]["secret"], VALUES["retention"]["secret"])
    assert all(f"\n  {name}: " in notes for name in secrets)
    assert "iu-listen gate open worker" in notes
    assert "kubectl --namespace shop exec deploy/orders-iu-listen -- iu-listen health" in notes


def test_the_security_context_is_no_value() -> None:
    """The restrictions of the pods are in the templates, so no value can weaken them."""
    text = (FOLDER / "values.yaml").read_text()
    assert not re.search(r"securityContext|privileged|runAs|capabilities|automount", text)
    pod, container = consumer(render(EXAMPLES))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
