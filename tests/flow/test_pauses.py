"""The report of a paused route: its reason, and the advice that belongs to it."""

from __future__ import annotations

import pytest

from flow.test_sweep import state
from iu_listen.flow.pauses import PauseReporter
from iu_listen.flow.route import Route
from iu_listen.model.routing import WorkerName
from support import Recorder


@pytest.mark.parametrize(
    ("held", "paused_by", "hint"),
    [("", "no_target", "give the module"), ("delivery_gate_closed", "delivery_gate_closed", "")],
)
def test_the_advice_belongs_to_the_reason(held, paused_by, hint):
    """A route that has no target and is paused by a switch is reported without the advice about its target.

    Fails when: the hint of the target is reported for every reason.
    """
    seen = Recorder()
    route = Route.of(state("r", held))
    route.no_target, route.hint = "there is no target", "give the module"
    PauseReporter(WorkerName("w"), seen).report(route)
    (report,) = seen.seen
    assert (report.paused_by, report.hint) == (paused_by, hint)
