"""deploy/prometheus and deploy/grafana: checks by promtool, and that alerts and panels use only existing metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from opentelemetry.sdk.metrics import MeterProvider

from iu_listen.model.delivery import Delivery, Event, Outcome, Result, TakenDelivery
from iu_listen.model.monitoring import Gauge, MetricsSnapshot
from iu_listen.model.observation import (
    BatchRan,
    CompletenessChecked,
    DeliveriesSettled,
    ExportDelayed,
    MetricsFailed,
    MetricsTaken,
    NotificationMissed,
    Observation,
    RoutePaused,
    SessionFailed,
    SpansExported,
)
from iu_listen.model.routing import Batch, Wake, WorkerName
from iu_listen.telemetry.metrics import MetricObserver

ROOT = Path(__file__).parents[2]
EVENT = Event(id=UUID(int=1), domain="iu", type="version_applied", stream="update")
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
PAGE = (ROOT / "docs" / "reference" / "metrics.md").read_text()

RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
}
CASES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text())["tests"]
CONFIG: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "iu-listen.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
#: Labels that Prometheus adds to every scraped series.
TARGET = {"job", "instance"}

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not here: apt-get install prometheus"
)


# -- existing metrics ----------------------------------------------------------------------------------------------


def rows() -> Iterator[tuple[str, str, str]]:
    """The metrics of the reference: name, unit, attributes."""
    table = r"^\| `((?:iu|messaging)\.[^`]+)` \| \w+ \| `([^`]+)` \| ([^|]+) \| [^|]+ \|$"
    yield from re.findall(table, PAGE, flags=re.MULTILINE)


def family(name: str, unit: str) -> str:
    """The name of a metric in Prometheus, without the `_total` of a counter."""
    return name.replace(".", "_") + ("_seconds" if unit == "s" else "")


def values(attribute: str) -> list[str]:
    """The values of an attribute that the reference lists."""
    found = {value for _, _, cell in rows() for value in re.findall(rf"`{attribute}`: ((?:`\w+`(?:, )?)+)", cell)}
    (listed,) = found
    return re.findall(r"`(\w+)`", listed)


def observations() -> Iterator[Observation]:
    """Observations for every instrument, with every value of every attribute that the reference lists."""
    worker = WorkerName("w")
    for wake in Wake:
        yield BatchRan(worker, wake, Batch(status="ran", seen=6, attempts=6, skipped=2, dead_lettered=2, seconds=0.1))
    yield NotificationMissed(worker, 1)
    yield MetricsFailed(worker, "NoAnswer")
    for session in values("iu.session"):
        yield SessionFailed(session, "why", 1.0)
    yield CompletenessChecked(worker, 3, 1, 1.0)
    taken = TakenDelivery(delivery=Delivery(id=1, route="r", idempotency_key="k", attempt=1, event=EVENT))
    for result in values("iu.delivery.result"):
        code = "" if result == "sent" else "http_503"
        yield DeliveriesSettled(worker, [Outcome(taken=taken, result=Result(result), began=0.0, ended=0.1, code=code)])
    yield RoutePaused(worker, "r", "breaker_open", "http_503")
    yield SpansExported(1, 1, 1)
    yield ExportDelayed("why", 1.0, None)
    measures = [Gauge(what="gate", part=gate, figure=1) for gate in values("iu.gate")]
    measures += [Gauge(what="notification_queue", part=None, figure=0.1)]
    measures += [Gauge(what="refused_emits", part=None, figure=1)]
    measures += [Gauge(what="healthy", part=None, figure=1.0, worker="w")]
    parts = re.findall(r"^\| `(\w+)` \|", PAGE[PAGE.index("| `iu.lag.part` |") :], flags=re.MULTILINE)
    for what in ("lag_items", "lag_seconds"):
        for part in parts:
            owner = worker if part in ("backlog", "delivery", "dead_letter") else None
            measures += [Gauge(what=what, part=part, figure=1, worker=owner)]
    for since_commit in (True, False):
        yield MetricsTaken(
            worker, MetricsSnapshot(measures=tuple(measures), latencies=(0.1,), since_commit=since_commit)
        )


@dataclass(frozen=True)
class Exposed:
    """The result of a scrape: series names by family, and the label values of each series."""

    families: dict[str, set[str]]
    labels: dict[str, dict[str, set[str]]]


@pytest.fixture(scope="module")
def exposed() -> Exposed:
    """The series that MetricObserver exposes after each of its instruments has recorded a value."""
    prometheus = pytest.importorskip("opentelemetry.exporter.prometheus")
    from prometheus_client import generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    observer = MetricObserver(MeterProvider([prometheus.PrometheusMetricReader()], shutdown_on_exit=False), "iu")
    try:
        for observation in observations():
            observer.observe(observation)
        text = generate_latest().decode()
    finally:
        observer.close()
    found = Exposed({}, {})
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            # The Prometheus client also exposes metrics of the process and of Python.
            if sample.labels.get("otel_scope_name") == "iu_listen":
                found.families.setdefault(metric.name, set()).add(sample.name)
                for label, value in sample.labels.items():
                    found.labels.setdefault(sample.name, {}).setdefault(label, set()).add(value)
    return found


def test_every_metric_of_the_reference_is_exposed(exposed: Exposed) -> None:
    """The exposed metrics are exactly those of the reference."""
    assert {family(name, unit) for name, unit, _ in rows()} == exposed.families.keys()


# -- queries of alerts and panels ----------------------------------------------------------------------------------

TOKEN = re.compile(
    r"""\s*(?: (?P<string>"(?:\\.|[^"\\])*")
             | (?P<range>\[[^\]]*\])
             | (?P<name>[A-Za-z_:][\w:]*)
             | (?P<number>\d[\w.]*)
             | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^(){},=<>]) )""",
    re.VERBOSE,
)
WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}
GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}


class Query:
    """A PromQL expression, parsed only for names and labels; promtool checks its validity.

    Attributes:
        selectors: Every selector: its name, and its matchers as label, operator and value.
        groupings: Every `by` and `on`: the word, its labels, and the names of the selectors that must have them.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._read = list(self._tokens())
        self._found: dict[int, tuple[str, list[tuple[str, str, str]]]] = {}
        self.groupings: list[tuple[str, list[str], list[str]]] = []
        self._walk()
        self.selectors = list(self._found.values())

    def _tokens(self) -> Iterator[tuple[str, str]]:
        at, text = 0, self.text.strip()
        while at < len(text):
            match = TOKEN.match(text, at)
            assert match, f"cannot read {text[at:]!r}"
            assert match.lastgroup
            yield match.lastgroup, match[match.lastgroup]
            at = match.end()

    def _sign(self, at: int) -> str:
        """The sign at this token; empty if there is none."""
        return self._read[at][1] if at < len(self._read) and self._read[at][0] == "sign" else ""

    def _end(self, at: int) -> int:
        """The index of the bracket that closes the one at this token."""
        depth = 0
        for end in range(at, len(self._read)):
            depth += (self._sign(end) in ("(", "{")) - (self._sign(end) in (")", "}"))
            if not depth:
                return end
        raise AssertionError(f"no bracket at {at}: {self.text}")

    def _walk(self) -> None:
        at, clauses = 0, []
        while at < len(self._read):
            kind, word = self._read[at]
            names = [*self._read[at + 1 : at + 2], ("", "")][0][1]
            if kind == "name" and word in GROUPINGS:
                end = self._end(at + 1)
                clauses.append((word, [label for kind, label in self._read[at + 2 : end] if kind == "name"], end + 1))
                at = end
            elif kind == "name" and word.lower() not in WORDS and self._sign(at + 1) != "(" and names not in GROUPINGS:
                end = self._end(at + 1) if self._sign(at + 1) == "{" else at
                inside = [text for _, text in self._read[at + 2 : end] if text != ","]
                parts = zip(inside[::3], inside[1::3], inside[2::3], strict=True)
                self._found[at] = word, [(label, sign, value[1:-1]) for label, sign, value in parts]
                at = end
            at += 1
        for word, labels, then in clauses:
            assert word in ("by", "on"), f"{word} is not understood here: {self.text}"
            if word == "by":
                assert self._sign(then) == "(", f"by stands before what it aggregates: {self.text}"
                self.groupings.append((word, labels, self._carriers(then + 1, self._end(then))))
            else:
                self.groupings.append((word, labels, [name for name, _ in self._found.values()]))

    def _carriers(self, at: int, end: int) -> list[str]:
        """Names of the selectors whose labels are in the result: not those on the right of `and` and `unless`."""
        found, aside = [], False
        while at < end:
            word = self._read[at][1]
            aside = (aside or word in ("and", "unless")) and word != "or"
            if at in self._found and not aside:
                found.append(self._found[at][0])
            if self._sign(at) in ("(", "{"):
                found += self._carriers(at + 1, self._end(at)) if not aside else []
                at = self._end(at)
            at += 1
        return found

    def labels(self, exposed: Exposed) -> set[str]:
        """The labels of the result: those of its aggregation, otherwise those of its selectors."""
        if "(" in self.text.partition("{")[0]:
            return {label for word, labels, _ in self.groupings if word == "by" for label in labels}
        return {label for name, _ in self.selectors for label in exposed.labels.get(name, ())} | TARGET


def filled(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it, with its variables replaced."""
    return expression.replace("$__rate_interval", "1m").replace("$worker", ".*").replace("$database", ".*")


def panel_queries() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every query of a panel, with the panel's title."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target


def expressions() -> Iterator[tuple[str, str]]:
    """Place and text of every expression: in rules, in their cases, in panels and in the dashboard's variables."""
    for name, rule in RULES.items():
        yield name, rule["expr"]
    for case in CASES:
        for series in case["input_series"]:
            yield f"case: {case['name']}", series["series"]
    for title, target in panel_queries():
        yield f"panel: {title}", filled(target["expr"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = re.findall(r"^label_values\((.+), (\w+)\)$", filled(variable["query"]["query"]))[0]
            yield f"variable: {variable['name']}", f"count by ({label}) ({selector})"


#: Labels with arbitrary values: for example, a worker can have any name.
OPEN = TARGET | {"db_namespace", "iu_worker", "messaging_consumer_group_name", "error_type", "iu_route_code"}


def strangers(expression: str, exposed: Exposed) -> Iterator[str]:
    """The names, labels and values in an expression that do not exist."""
    known = {**exposed.labels, "up": {}}
    query = Query(expression)
    for name, matchers in query.selectors:
        if name not in known:
            yield name
            continue
        for label, sign, value in matchers:
            if label not in known[name].keys() | TARGET:
                yield f"{name}{{{label}}}"
            elif sign in ("=", "!=") and label not in OPEN and value not in known[name][label]:
                yield f'{name}{{{label}="{value}"}}'
    for word, labels, names in query.groupings:
        for name in names:
            yield from (
                f"{word} ({label}) of {name}" for label in labels if label not in known.get(name, {}).keys() | TARGET
            )


def test_nothing_asks_for_what_is_not_exposed(exposed: Exposed) -> None:
    """Every metric in a rule, a case of a rule or a panel is exposed, and has the labels that are used.

    Fails when: a metric, a label or a value is renamed in the program only, or misspelt in an expression.
    """
    assert [f"{where}: {what}" for where, text in expressions() for what in strangers(text, exposed)] == []


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("rate(iu_wake_total[5m])", ["iu_wake_total"]),
        ("iu_notifications_missed", ["iu_notifications_missed"]),
        ('iu_gate_open{iu_worker="w"}', ["iu_gate_open{iu_worker}"]),
        ('iu_lag_items{iu_lag_part="backlogs"} > 0', ['iu_lag_items{iu_lag_part="backlogs"}']),
        ("sum by (job, iu_wake) (iu_attempts_total)", ["by (iu_wake) of iu_attempts_total"]),
        ("iu_gate_open and on (iu_worker) iu_wakes_total", ["on (iu_worker) of iu_gate_open"]),
        ("max by (iu_gate) (iu_gate_open and on (instance) iu_wakes_total unless up == 0)", []),
        ("max by (iu_gate) (iu_gate_open or iu_wakes_total)", ["by (iu_gate) of iu_wakes_total"]),
        ("a / b offset 5m", ["a", "b"]),
    ],
)
def test_a_stranger_is_found(exposed: Exposed, expression: str, what: list[str]) -> None:
    """strangers() finds a name, a label and a value that do not exist, at any place in an expression."""
    assert list(strangers(expression, exposed)) == what


def test_nothing_is_shown_that_a_query_does_not_answer(exposed: Exposed) -> None:
    """Every label in the text of an alert or in a legend is in the result of its expression."""
    texts = [(name, rule["expr"], " ".join(rule["annotations"].values())) for name, rule in RULES.items()]
    shown = [(name, text, re.findall(r"\$labels\.(\w+)", said)) for name, text, said in texts]
    shown += [(t, filled(q["expr"]), re.findall(r"\{\{ *(\w+) *\}\}", q["legendFormat"])) for t, q in panel_queries()]

    assert sum(len(labels) for _, _, labels in shown) > len(RULES)
    assert [(name, labels) for name, text, labels in shown if not {*labels} <= Query(text).labels(exposed)] == []


def test_every_metric_is_used(exposed: Exposed) -> None:
    """Every metric of the reference is used in a panel or in a rule."""
    used = {name for where, text in expressions() if "case:" not in where for name, _ in Query(text).selectors}

    assert [name for name, unit, _ in rows() if not exposed.families[family(name, unit)] & used] == []


def test_no_database_hides_another(exposed: Exposed) -> None:
    """Every series has the name of its database, and rules and panels never aggregate over several databases."""
    assert [name for name, labels in exposed.labels.items() if "db_namespace" not in labels] == []
    put_together = [
        (where, labels)
        for where, text in expressions() if "variable:" not in where
        for word, labels, _ in Query(text).groupings
        # A process belongs to one database.
        if word == "by" and not {"job", "instance"} <= {*labels}
    ]  # fmt: skip

    assert put_together
    assert [(where, labels) for where, labels in put_together if "db_namespace" not in labels] == []


# -- Prometheus ----------------------------------------------------------------------------------------------------


def promtool(*arguments: str | Path) -> None:
    """Run promtool; its error message has the line."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_reads_the_rules() -> None:
    """promtool accepts every rule: its expression, its durations, its templates."""
    promtool("check", "rules", PROMETHEUS / "rules.yaml")


@needs_promtool
def test_every_alert_fires_when_it_should() -> None:
    """Each case of rules_test.yaml has exactly the expected alerts at the given time, with the expected texts.

    Fails when: a threshold, a duration or the exception for a process that has lost its lease is removed.
    """
    promtool("test", "rules", PROMETHEUS / "rules_test.yaml")


@needs_promtool
def test_promtool_reads_the_configuration(tmp_path: Path) -> None:
    """Prometheus accepts prometheus.yaml with the rules beside it."""
    assert CONFIG["rule_files"] == ["/etc/prometheus/rules.yaml"]
    shutil.copy(PROMETHEUS / "rules.yaml", tmp_path)
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(CONFIG | {"rule_files": ["rules.yaml"]}))
    promtool("check", "config", tmp_path / "prometheus.yaml")


@needs_promtool
def test_every_panel_asks_in_promql(tmp_path: Path) -> None:
    """Every expression of the dashboard is PromQL when Grafana's variables are replaced."""
    found = [{"record": f"panel:{n}", "expr": filled(query["expr"])} for n, (_, query) in enumerate(panel_queries())]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": found}]}))
    promtool("check", "rules", tmp_path / "panels.yaml")


def test_every_alert_has_a_case_that_fires_it_and_one_that_does_not() -> None:
    """rules_test.yaml has a case in which each alert fires, one in which it does not, and no unknown alert."""
    checks = [check for case in CASES for check in case["alert_rule_test"]]

    assert {check["alertname"] for check in checks if check["exp_alerts"]} == RULES.keys()
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == RULES.keys()


def test_the_alerts_look_for_the_job_that_is_scraped() -> None:
    """The rules select the job by its name in prometheus.yaml, and its target is the port of the reference."""
    (job,) = CONFIG["scrape_configs"]
    named = {
        value for rule in RULES.values() for _, matchers in Query(rule["expr"]).selectors
        for label, _, value in matchers if label == "job"
    }  # fmt: skip

    assert named == {job["job_name"]}
    assert job["static_configs"] == [{"targets": ["consumer:9464"]}]
    assert "http://localhost:9464/metrics" in PAGE


def anchors(page: str) -> set[str]:
    """The anchors of the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_is_wrong_and_where_help_is(name: str) -> None:
    """Each alert has a severity, a summary, and a description that names a page and only existing commands."""
    rule = RULES[name]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description"}
    description = rule["annotations"]["description"]
    pages = re.findall(r"(docs/[\w/-]+\.md)(?:#([\w-]+))?", description)
    assert pages
    for page, anchor in pages:
        assert not anchor or anchor in anchors(page), f"{page}#{anchor}"
    reference = ROOT / "docs" / "reference"
    commands = re.findall(r"^### (iu-listen .+)$", (reference / "commands.md").read_text(), flags=re.MULTILINE)
    for quoted in re.findall(r"`([^`]+)`", description):
        if quoted.startswith("iu-listen"):
            assert any(f"{quoted} ".startswith(f"{command} ") for command in commands), quoted
        else:
            assert f"`{quoted}" in (reference / "heartbeats-and-states.md").read_text() + PAGE, quoted


# -- Grafana -------------------------------------------------------------------------------------------------------


def test_no_two_panels_overlap() -> None:
    """Each panel has its own place in the grid of 24 columns, and its own id."""
    places = {panel["id"]: panel["gridPos"] for panel in DASHBOARD["panels"]}
    assert len(places) == len(DASHBOARD["panels"])
    assert all(place["x"] + place["w"] <= 24 for place in places.values())
    assert [
        (one, other)
        for (one, a), (other, b) in combinations(places.items(), 2)
        if a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]
    ] == []  # fmt: skip


def sources(node: Any) -> Iterator[Any]:
    """Every data source that the dashboard names."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "datasource":
                yield value
            else:
                yield from sources(value)
    elif isinstance(node, list):
        for value in node:
            yield from sources(value)


def test_the_dashboard_works_with_any_prometheus() -> None:
    """Every panel, query and variable uses the data source of the dashboard's variable, which is a Prometheus."""
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert {"datasource", "database", "worker"} == variables.keys()
    found = list(sources(DASHBOARD))
    assert len(found) == len(PANELS) + len(list(panel_queries())) + 2
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in found)


def test_every_panel_teaches() -> None:
    """Each panel has a title, a unit, and a description of one sentence."""
    assert [
        panel["title"]
        for panel in PANELS
        if not panel["title"] or not panel["fieldConfig"]["defaults"]["unit"]
        or not re.fullmatch(r"[A-Z][^.]+\.", panel["description"])
    ] == []  # fmt: skip


def test_grafana_provisions_what_is_here() -> None:
    """The provisioning names a Prometheus for the dashboard, and the directory into which dashboards are mounted."""
    folder = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards.yaml").read_text())["providers"]

    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")
