"""The state machine of a circuit breaker: `fn_iu_breaker_after`, one case for each transition."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from postgres.delivery_helpers import (
    ROUTE,
    open_route,
)
from support import MANY, connected, drain

POLICY = {"breaker": 3, "trial_interval_max": 2, "dead_letters_in_a_row": 3}


CLOSED = {
    "failures": 0, "failed_ids": [], "open": False, "trials": 0, "trial_id": None, "dead_letters": 0, "stopped": False,
    "lifted": None,
}  # fmt: skip


#: Two failures of different deliveries, of the three that open the circuit breaker.
COUNTING = CLOSED | {"failures": 2, "failed_ids": [1, 2]}


OPEN = CLOSED | {"failures": 3, "failed_ids": [1, 2, 3], "open": True, "trials": 1}


HALF_OPEN = OPEN | {"trial_id": 7}


#: The budget of dead letters is spent, and a trial delivery is in flight.
STOPPED = HALF_OPEN | {"dead_letters": 3, "stopped": True}


#: Parameters: the state before ($1 to $8, in the order of CLOSED; lifted is an age in seconds), then the event.
AFTER = """
    select b.failures, b.failed_ids, b.opened_at is not null as open, b.trials, b.trial_id, b.dead_letters,
           b.stopped_at is not null as stopped, extract(epoch from now() - b.lifted_at)::float8 as lifted,
           extract(epoch from b.trial_at - now())::float8 as pause
      from jsonb_populate_record(null::iu_delivery_breaker, jsonb_build_object(
               'route_code', 'r', 'failures', $1::int, 'failed_ids', $2::bigint[],
               'opened_at', case when $3 then now() - interval '1 hour' end, 'trials', $4::int, 'trial_id', $5::bigint,
               'trial_at', case when $3 then now() + interval '77 seconds' end,
               'dead_letters', $6::int, 'stopped_at', case when $7 then now() - interval '1 hour' end,
               'lifted_at', now() - $8::float8 * interval '1 second')) before
     cross join lateral fn_iu_breaker_after(before, $9, $10::jsonb, now(), $11, $12, $13, 'code', 1.0) b
"""


#: The time of the next trial delivery has not changed.
SAME = 77.0


@dataclass(frozen=True)
class Happened:
    """An event of a circuit breaker: its name, the id of the delivery, and the facts about a failure."""

    name: str
    id: int = 7
    at_fault: bool = False
    retry_after: float | None = None


#: name: state before, event, differences of the state after, seconds until the next trial delivery (None: not due)
TRANSITIONS = {
    # -- closed
    "closed: a failure counts": (CLOSED, Happened("failed", 1), {"failures": 1, "failed_ids": [1]}, None),
    "closed: the same delivery counts once": (COUNTING, Happened("failed", 2), {}, None),
    "closed: an unavailable target counts each time": (
        CLOSED | {"failures": 1, "failed_ids": [1]}, Happened("unavailable", 1), {"failures": 2}, None,
    ),
    "closed: a delivery at fault does not count": (
        COUNTING, Happened("failed", 3, at_fault=True), {"failed_ids": [1, 2, 3]}, None,
    ),
    "closed: nor does it where it says unavailable": (
        COUNTING, Happened("unavailable", 3, at_fault=True, retry_after=60.0), {"failed_ids": [1, 2, 3]}, None,
    ),
    "closed: a delivery that was not called changes nothing": (COUNTING, Happened("not_called", 2), {}, None),
    "closed: an arrival ends the row of failures": (COUNTING, Happened("arrived"), {"failures": 0, "failed_ids": []}, None),
    "closed: a rejection ends the row of failures": (
        COUNTING, Happened("rejected"), {"failures": 0, "failed_ids": []}, None,
    ),
    "closed: a dead letter counts": (COUNTING, Happened("dead_letter"), {"dead_letters": 1}, None),
    "closed: a rejection does not end the row of dead letters": (
        COUNTING | {"dead_letters": 2}, Happened("rejected"), {"failures": 0, "failed_ids": []}, None,
    ),
    "closed: an arrival ends the row of dead letters": (
        CLOSED | {"dead_letters": 2}, Happened("arrived"), {"dead_letters": 0}, None,
    ),
    "closed: an arrival after a spent budget begins the hour": (
        CLOSED | {"dead_letters": 3, "lifted": 2000.0}, Happened("arrived"), {"dead_letters": 0, "lifted": 0.0}, None,
    ),
    # -- closed to open
    "closed → open: as many different deliveries as the policy says": (
        COUNTING, Happened("failed", 3), {"failures": 3, "failed_ids": [1, 2, 3], "open": True}, 0.25,
    ),
    "closed → open: very many deliveries at fault": (
        CLOSED | {"failed_ids": list(range(45))}, Happened("failed", 45, at_fault=True),
        {"failed_ids": list(range(46)), "open": True}, 0.25,
    ),
    "closed → open: the target asks for a pause": (
        CLOSED, Happened("unavailable", 1, retry_after=9.0), {"failures": 1, "failed_ids": [1], "open": True}, 9.0,
    ),
    # -- open
    "open: deliveries that were in flight change nothing": (OPEN, Happened("failed", 4), {}, SAME),
    "open: nor do they if the target asks for a pause": (OPEN, Happened("unavailable", 4, retry_after=9.0), {}, SAME),
    "open: a delivery that was not called changes nothing": (OPEN, Happened("not_called", 4), {}, SAME),
    "open: a dead letter counts": (OPEN, Happened("dead_letter"), {"dead_letters": 1}, SAME),
    "open → closed: any delivery arrives": (OPEN, Happened("arrived", 4), CLOSED, None),
    "open → closed: the target rejects any delivery": (OPEN, Happened("rejected", 4), CLOSED, None),
    "open → closed: an operator resumes the route": (OPEN, Happened("resumed"), CLOSED, None),
    # -- half-open
    "half-open: other deliveries change nothing": (HALF_OPEN, Happened("failed", 4), {}, SAME),
    "half-open → open: the trial delivery fails, and the pause doubles": (
        HALF_OPEN, Happened("failed"), {"trials": 2, "trial_id": None}, 1.0,
    ),
    "half-open → open: up to the longest pause": (
        HALF_OPEN | {"trials": 9}, Happened("unavailable"), {"trials": 10, "trial_id": None}, 2.0,
    ),
    "half-open → open: the target asks for a longer pause": (
        HALF_OPEN | {"trials": 9}, Happened("unavailable", retry_after=30.0), {"trials": 10, "trial_id": None}, 30.0,
    ),
    "half-open → open: the trial delivery was not called, and another follows at once": (
        HALF_OPEN, Happened("not_called"), {"trial_id": None}, 0.0,
    ),
    "half-open → closed: any delivery arrives": (HALF_OPEN, Happened("arrived", 4), CLOSED, None),
    "half-open → closed: the target rejects any delivery": (HALF_OPEN, Happened("rejected", 4), CLOSED, None),
    # -- the budget of dead dead_letters_by_event
    "closed → stopped: the budget is spent": (
        COUNTING | {"dead_letters": 2}, Happened("dead_letter"), {"dead_letters": 3, "stopped": True, "open": True}, 0.25,
    ),
    "open → stopped: the budget is spent": (
        HALF_OPEN | {"dead_letters": 2}, Happened("dead_letter"),
        {"dead_letters": 3, "stopped": True, "trials": 0, "trial_id": None}, 0.25,
    ),
    "closed: for an hour after an arrival the budget is eight times as large": (
        CLOSED | {"dead_letters": 22, "lifted": 3599.0}, Happened("dead_letter"), {"dead_letters": 23}, None,
    ),
    "closed → stopped: and no larger": (
        CLOSED | {"dead_letters": 23, "lifted": 3599.0}, Happened("dead_letter"),
        {"dead_letters": 24, "stopped": True, "open": True}, 0.25,
    ),
    "closed → stopped: after the hour the budget is as before": (
        CLOSED | {"dead_letters": 2, "lifted": 3601.0}, Happened("dead_letter"),
        {"dead_letters": 3, "stopped": True, "open": True}, 0.25,
    ),
    "stopped: a rejection is no success": (STOPPED, Happened("rejected"), {}, SAME),
    "stopped: a failed trial delivery doubles the pause": (
        STOPPED, Happened("failed"), {"trials": 2, "trial_id": None}, 1.0,
    ),
    "stopped: a further dead letter does not stop it again": (
        STOPPED, Happened("dead_letter"), {"dead_letters": 4}, SAME,
    ),
    "stopped → closed: any delivery arrives, and the hour begins": (
        STOPPED, Happened("arrived", 4), CLOSED | {"lifted": 0.0}, None,
    ),
    "stopped → closed: an operator resumes the route, with a new budget": (
        STOPPED | {"lifted": 60.0}, Happened("resumed"), CLOSED, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSITIONS)
@pytest.mark.asyncio
async def test_the_circuit_breaker_follows_its_state_table(live, name):
    """`fn_iu_breaker_after` is a pure function: the table lists each effect of an event on a circuit breaker.

    Fails when: a transition of the state table in the comment of `iu_delivery_breaker` is missing or differs.
    """
    before, event, changes, pause = TRANSITIONS[name]
    async with connected(live.dsn) as connection:
        after = await connection.fetchrow(
            AFTER, *before.values(), event.name, json.dumps(POLICY), event.id, event.at_fault, event.retry_after
        )
    assert {key: after[key] for key in CLOSED} == before | changes | {"lifted": after["lifted"]}
    for found, expected in ((after["lifted"], (before | changes)["lifted"]), (after["pause"], pause)):
        assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.asyncio
async def test_a_success_closes_the_circuit_breaker_and_attributes_earlier_failures(live):
    """A success of any delivery closes the circuit breaker and decides whether earlier
    failures were caused by the event.

    A delivery that failed between two successes is at fault; one that failed in an outage is not.

    Fails when: only the trial delivery closes the circuit breaker, or failures of an outage are blamed on the delivery.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await connection.execute(MANY, 2)
        await drain(connection)
        ids = [r["id"] for r in await connection.fetch("select id from iu_route_delivery order by id")]
        for opened, own in (("null", True), ("now()", False)):
            await connection.execute("delete from iu_delivery_breaker")
            await connection.execute("update iu_route_delivery set at_fault = false")
            await connection.execute(
                f"""insert into iu_delivery_breaker (route_code, failures, failed_ids, opened_at, trial_id)
                    values ($1, 1, $2, {opened}, $3)""",
                ROUTE, ids[:1], ids[0],
            )  # fmt: skip
            await connection.execute("select fn_iu_breaker_success($1, $1)", [ROUTE])
            row = await connection.fetchrow("select failures, failed_ids, opened_at, trial_id from iu_delivery_breaker")
            assert tuple(row) == (0, [], None, None)
            found = [
                r["at_fault"] for r in await connection.fetch("select at_fault from iu_route_delivery order by id")
            ]
            assert found == [own, False]
