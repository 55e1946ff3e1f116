"""Misbehaving targets: each event still ends as sent or as a dead letter, and no other delivery waits for it.

Targets raise, block, end the process, and ignore their cancellation.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from postgres.delivery_helpers import add_route, count_deliveries
from storm.environment import Consumer
from support import connected, wait_until
from targets.misbehaving import FAILS, IGNORES, KILLS, LEAVES, REJECTS, UNAVAILABLE

#: Number of sets of events that test_every_event_ends_whatever_targets_do draws; set it higher by hand.
EXAMPLES = int(os.environ.get("CONTAIN_EXAMPLES", "3"))
#: Longest time until every event of a set has ended, in seconds: a delivery that ends its process needs about six.
BOUND = 150.0
ATTEMPTS = 2
EVENT = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, event_subject_ref, safe_payload)
    values ($1, 'iu', $2, 'update', 'immediate', $3, jsonb_build_object('do', $4::text[]))
"""
ROUTES = ("one", "two", "three")


async def prepare(connection: asyncpg.Connection, order: str = "none", **policy: Any) -> None:
    """Create three live routes, each with its own event type; the third one gets good events only."""
    for code in ROUTES:
        await connection.execute(
            "insert into event_type_registry values ('iu', $1, 'update', 'immediate') on conflict do nothing", code
        )
        await add_route(
            connection, code, order=order, attempts=ATTEMPTS, backoff=0.05, backoff_max=0.2, trial_interval_max=0.2, deadline=1,
            concurrency=4, dead_letters_in_a_row=100_000, **policy,
        )  # fmt: skip
        await connection.execute("update iu_outbound_route set event_type = $1 where route_code = $1", code)


async def emit(connection: asyncpg.Connection, route: str, *do: str, subject: UUID | None = None) -> UUID:
    event = uuid4()
    await connection.execute(EVENT, event, route, subject or uuid4(), list(do))
    return event


@asynccontextmanager
async def consumer(dsn: str, folder: Path) -> AsyncIterator[Consumer]:
    """A consumer with the targets of misbehaving.py that is restarted whenever it ends; at the end SIGTERM ends it."""
    running = Consumer("consumer", dsn, folder)
    running.environ = {
        "IU_LISTEN_APP": "targets.misbehaving",
        "CALLS": str(folder / "calls"),
        "IU_LISTEN_GRACE_PERIOD": "5",
    }
    (folder / "calls").touch()
    running.begin()
    try:
        yield running
    finally:
        await running.end()
    assert running.stopped_by_sigterm, "it did not end when it was asked to"


async def outcomes(connection: asyncpg.Connection) -> dict[UUID, str]:
    """How each event has ended: sent, or the failure code of its dead letter. Two endings of an event are an error."""
    rows = await connection.fetch(
        """select event_ref, 'sent' as ending from iu_route_attempt where status = 'sent'
            union all select event_ref, failure_code from iu_route_dead_letter where resolved_at is null"""
    )
    found = {row["event_ref"]: row["ending"] for row in rows}
    assert len(found) == len(rows), "an event has ended twice"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize("what", KILLS)
def test_a_delivery_that_ends_the_process_becomes_a_dead_letter(live, tmp_path, what):
    """The delivery is attempted alone and becomes a dead letter after its attempts; good events around it arrive once.

    Fails when: in-flight deliveries are not recorded after an unclean end, or are not attempted alone.
    """

    async def run() -> None:
        async with connected(live.dsn) as connection:
            await prepare(connection)
            async with consumer(live.dsn, tmp_path) as running:
                good = [await emit(connection, "one", "return") for _ in range(5)]
                killer = await emit(connection, "one", what)
                good += [await emit(connection, route, "return") for route in ROUTES for _ in range(5)]

                async def over() -> bool:
                    found = await outcomes(connection)
                    return killer in found and found.keys() >= set(good)

                await wait_until(over, f"each event has ended; after {running.starts} starts", BOUND)
                assert await count_deliveries(connection) == 0
                found = await outcomes(connection)
                assert found == dict.fromkeys(good, "sent") | {killer: "interrupted"}
                rows = await connection.fetch(
                    "select decision, failure_code from iu_route_attempt where event_ref = $1 order by attempt_no",
                    killer,
                )
                assert [tuple(row) for row in rows] == [("retry", "interrupted"), ("dead_letter", "interrupted")]
                # A later event is delivered without another restart.
                starts = running.starts
                last = await emit(connection, "one", "return")
                await wait_until(lambda: _ended(connection, last), "the last event has arrived", 20)
                assert running.starts == starts

    asyncio.run(run())


async def _ended(connection: asyncpg.Connection, event: UUID) -> bool:
    return event in await outcomes(connection)


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_whatever_a_target_raises_is_the_outcome_of_its_own_delivery(live, tmp_path):
    """Every exception of FAILS and REJECTS uses attempts of its own event only; process and other deliveries continue.

    Fails when: an exception of a target is not contained in its call, or its values reach the database unchanged.
    """

    async def run() -> None:
        async with connected(live.dsn) as connection:
            await prepare(connection)
            async with consumer(live.dsn, tmp_path) as running:
                bad = {await emit(connection, "one", what): what for what in (*FAILS, *REJECTS, "hang")}
                good = [await emit(connection, route, "return") for route in ROUTES]

                async def over() -> bool:
                    # Good events keep coming: with bad ones alone, the circuit breaker would see an outage.
                    good.extend([await emit(connection, route, "return") for route in ROUTES])
                    await asyncio.sleep(0.25)
                    return (await outcomes(connection)).keys() >= set(bad)

                await wait_until(over, "each bad event has ended", 60)
                await wait_until(lambda: _none_pending(connection), "the good events have ended", 60)
                found = await outcomes(connection)
                assert found.keys() == {*bad, *good}
                assert {found[event] for event in good} == {"sent"}
                assert "sent" not in {found[event] for event in bad}
                assert running.starts == 1
                rows = await connection.fetch("select event_ref, count(*) from iu_route_attempt group by 1")
                counts = {bad[row["event_ref"]]: row["count"] for row in rows if row["event_ref"] in bad}
                assert {counts[what] for what in REJECTS} == {1}
                # If the circuit breaker opened, one or two attempts were given back.
                assert {counts[what] for what in (*FAILS, "hang")} <= {
                    ATTEMPTS,
                    ATTEMPTS + 1,
                    ATTEMPTS + 2,
                    ATTEMPTS + 3,
                }

    asyncio.run(run())


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize("what", IGNORES)
def test_a_call_that_ignores_its_cancellation_is_abandoned(live, tmp_path, what):
    """The attempts are counted, the event becomes a dead letter, its capacity is free for other events meanwhile, and
    the process ends in order when it is asked to, although the calls still run.

    Fails when: an abandoned call is waited for, at its deadline or at the end of the process.
    """

    async def run() -> None:
        async with connected(live.dsn) as connection:
            await prepare(connection)
            await connection.execute(
                "update iu_outbound_route set delivery_policy = delivery_policy || '{\"concurrency\": 1}'"
            )
            async with consumer(live.dsn, tmp_path) as running:
                bad = await emit(connection, "one", what)
                good = [await emit(connection, route, "return") for route in ROUTES for _ in range(5)]

                async def over() -> bool:
                    return (await outcomes(connection)).keys() == {bad, *good}

                await wait_until(over, "each event has ended", 30)
                assert await outcomes(connection) == dict.fromkeys(good, "sent") | {bad: "target_ignores_cancellation"}
                rows = await connection.fetch(
                    "select decision, failure_code from iu_route_attempt where event_ref = $1 order by attempt_no", bad
                )
                decisions = ["retry", "dead_letter"]
                assert [tuple(row) for row in rows] == [(it, "target_ignores_cancellation") for it in decisions]
                assert running.starts == 1
            assert running.code == 0
            lines = [json.loads(line) for line in running.log.read_text().splitlines()]
            (line,) = [line for line in lines if line["event"] == "call abandoned: the target ignores its cancellation"]
            assert (line["route"], line["target"], line["still_running"]) == ("one", "workflow one", 1)
            assert lines[-1]["event"].startswith("process ended while" if what == "thread" else "stopped")
            # The consumer has given back its lease, so the next consumer need not suspect an unclean end.
            assert await connection.fetchval("select released from iu_delivery_lease")

    asyncio.run(run())


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
@pytest.mark.parametrize("what", LEAVES)
def test_what_a_call_leaves_behind_keeps_no_process(live, tmp_path, what):
    """A call returns and leaves a running task or thread: after SIGTERM the process still ends in order, and logs it.

    Fails when: the end of the event loop, or of the interpreter, waits for it without a limit.
    """

    async def run() -> None:
        async with connected(live.dsn) as connection:
            await prepare(connection)
            async with consumer(live.dsn, tmp_path) as running:
                event = await emit(connection, "one", what, "return")
                await wait_until(lambda: _ended(connection, event), "the event has ended", 30)
                assert await outcomes(connection) == {event: "sent"}
            assert (running.starts, running.code) == (1, 0)
            lines = [json.loads(line)["event"] for line in running.log.read_text().splitlines()]
            assert lines[-2:] == ["stopped", "process ended while tasks or threads of targets were still running"]
            assert await connection.fetchval("select released from iu_delivery_lease")

    asyncio.run(run())


SCRIPTS = st.one_of(
    st.just(("return",)),
    st.sampled_from([*FAILS, *REJECTS]).map(lambda what: (what,)),
    st.sampled_from([*FAILS, *UNAVAILABLE, "hang", *IGNORES]).map(lambda what: (what, "return")),
    st.sampled_from([*UNAVAILABLE, "hang", *IGNORES]).map(lambda what: (what,)),
)


@st.composite
def sets(draw: st.DrawFn) -> dict[str, Any]:
    """Events of two routes with the behaviour of their targets, at most two of which end the process; and kills."""
    number = draw(st.integers(5, 20))
    scripts = [draw(SCRIPTS) for _ in range(number)]
    for place in draw(st.sets(st.integers(0, number - 1), max_size=2)):
        scripts[place] = (draw(st.sampled_from(list(KILLS))), *draw(st.sampled_from([(), ("return",)])))
    return {
        "scripts": scripts,
        "routes": [draw(st.sampled_from(ROUTES[:2])) for _ in range(number)],
        "subjects": [draw(st.integers(0, 4)) for _ in range(number)],
        "order": draw(st.sampled_from(["none", "subject"])),
        "kills": draw(st.integers(0, 2)),
    }


async def play(dsn: str, folder: Path, drawn: dict[str, Any]) -> None:
    subjects = [uuid4() for _ in range(5)]
    async with connected(dsn) as connection:
        await prepare(connection, order=drawn["order"])
        async with consumer(dsn, folder) as running:
            scripts: dict[UUID, tuple[str, ...]] = {}
            for script, route, subject in zip(drawn["scripts"], drawn["routes"], drawn["subjects"], strict=True):
                scripts[await emit(connection, route, *script, subject=subjects[subject])] = script
            for _ in range(drawn["kills"]):
                await wait_until(lambda: asyncio.sleep(0, running.pid), "a process")
                await running.kill_and_wait()

            async def over() -> bool:
                # Good events keep coming: otherwise an unavailable target of the last event counts as an outage.
                for route in ROUTES:
                    scripts[await emit(connection, route, "return")] = ("return",)
                await asyncio.sleep(0.25)
                found = await outcomes(connection)
                return all(event in found for event in list(scripts)[: len(drawn["scripts"])])

            await wait_until(over, f"every event has ended: {json.dumps(drawn)}", BOUND)
            await wait_until(lambda: _none_pending(connection), "the good events have ended", 60)
        found = await outcomes(connection)
    assert found.keys() == scripts.keys()
    for event, script in scripts.items():
        if script[-1] == "return" and script[0] not in REJECTS:
            assert found[event] == "sent", (script, found[event])
        else:
            assert found[event] != "sent", script


async def _none_pending(connection: asyncpg.Connection) -> bool:
    backlog = await connection.fetchval("select sum(backlog) from v_iu_event_backlog")
    return not backlog and not await count_deliveries(connection)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_every_event_ends_whatever_targets_do(server, tmp_path_factory):
    """Every event ends as exactly one of sent and dead letter, within a bound, without an operator, although targets of
    two routes, ordered or not, raise, return, block, exit and ignore their cancellation, and the consumer is killed. A
    third route, with good events only, delivers them all.

    Fails when: any of the mechanisms of this file is removed.
    """

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 3, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(sets())
    def check(drawn: dict[str, Any]) -> None:
        for database in server.create("applied"):
            asyncio.run(_open_and_play(database.dsn, tmp_path_factory.mktemp("play"), drawn))

    check()


async def _open_and_play(dsn: str, folder: Path, drawn: dict[str, Any]) -> None:
    async with connected(dsn) as connection:
        await connection.execute("update dot_config set value = 'true' where key = 'iu_core.route_worker_enabled'")
        await connection.execute("update dot_config set value = 'true' where key = 'iu_core.routes_master_enabled'")
    await play(dsn, folder, drawn)
