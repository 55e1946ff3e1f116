"""The benchmark suite: the order of its rounds, its ranking, and its reports, without a measurement."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from conventions.files import ROOT


@pytest.fixture
def suite(monkeypatch) -> ModuleType:
    """The package of the suite, which is no part of iu-listen."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import suite.measurements.measurement
    import suite.report
    import suite.runner
    import suite.systems

    return suite


@pytest.fixture
def run(suite):
    """Results of three systems in two rounds; the third one failed."""
    outcome = suite.measurements.measurement.Outcome
    series = [
        suite.runner.Series("iu-listen", "ours", [outcome({"p50": 2.0}, [1.0, 2.0]), outcome({"p50": 4.0}, [4.0])]),
        suite.runner.Series("peer <1>", "peer", [outcome({"p50": 1.0}, [1.0]), outcome({"p50": 2.0}, [2.0])]),
        suite.runner.Series("peer 2", "peer", [], ["TimeoutError: nothing was called", "TimeoutError: again"]),
    ]
    metric = suite.measurements.measurement.Metric("p50", "ms")
    table = suite.runner.Table("latency", "Live latency", "A text.", "distribution", [metric], series)
    about = {
        "date": "2026-11-30 12:00 UTC", "cores": 2, "processor": "", "load": 0.5, "python": "3.11",
        "postgresql": "18.4", "sizes": {"rounds": 2}, "missing": {"pgque": "no package"},
        "systems": [{"name": "iu-listen", "version": "0.2.0", "settings": "defaults"}],
    }  # fmt: skip
    return suite.report.Run(about, [table])


def test_every_subject_is_measured_once_in_each_round(suite):
    """A round contains every subject once, and rounds begin with different ones.

    Fails when: the order of the subjects is the same in each round, so that the first one is always measured first.
    """
    rounds = [suite.runner.order("abcd", number) for number in range(4)]

    assert [sorted(order) for order in rounds] == [list("abcd")] * 4
    assert len({order[0] for order in rounds}) > 1


def test_the_first_metric_ranks_the_subjects(run):
    """The ranking is by the median of the first metric, and a subject without a figure is the last.

    Fails when: a higher figure is taken for a better one although the metric says that lower is better.
    """
    assert [one.subject for one in run.tables[0].ranking()] == ["peer <1>", "iu-listen", "peer 2"]


def test_results_survive_json(suite, run):
    """Tables that were saved and loaded are equal, so that reports can be written anew without a measurement.

    Fails when: a field of the results is not restored.
    """
    (table,) = run.tables

    assert suite.runner.Table.from_json(table.as_json()) == table


def test_the_page_needs_nothing_from_elsewhere(suite, run):
    """The HTML report has inline plots, escapes names, and refers to nothing outside of itself.

    Fails when: the page loads a script, a style, a font or a picture.
    """
    page = suite.report.html(run)

    assert "<svg" in page
    assert "peer &lt;1&gt;" in page
    assert "again" in page
    assert re.findall(r"<script|<link|<img|@import|url\(|https?:", page) == []


def test_the_documentation_names_ratio_and_missing_systems(suite, run):
    """The page of the documentation has the median, the range, the multiple of iu-listen, and the missing systems.

    Fails when: the ratio is computed the other way round, or a system that was not measured is not named.
    """
    page = suite.report.markdown(run)

    assert "| peer <1> | 1.50 (1.00 – 2.00) | 0.50 |" in page
    assert "| pgque | not measured | no package |" in page
    assert "peer 2 failed in 2 rounds" in page


def test_every_system_has_a_worker(suite):
    """The worker that a row of the table of systems names exists.

    Fails when: a system is added without its worker.
    """
    for system in suite.systems.SYSTEMS:
        if system.kind != "ours" and (system.package or system.kind == "bound"):
            command = system.worker("run", "postgresql://", "latency")
            assert suite.systems.Path(command[1]).is_file(), system.name
