"""The circuit breaker of a route among poison events and outages."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from iu_listen import Settings
from iu_listen.model.delivery import Failed, Reject, TakeRequest, Unavailable
from iu_listen.model.observation import RoutePaused, RouteResumed
from iu_listen.postgres.delivery import DeliverySession
from postgres.breaker_helpers import dead_letters_by_event
from postgres.delivery_helpers import (
    ROUTE,
    RecordingTarget,
    count_deliveries,
    delivering,
    open_route,
    wait_until_settled,
)
from support import MANY, connected, drain, insert_event, wait_until


async def ended(connection: asyncpg.Connection, recording: RecordingTarget, good: set[UUID], poison: set[UUID]) -> None:
    """Wait until all deliveries have ended; each good event has arrived, each poison event is one dead letter."""
    await wait_until_settled(connection, 60)
    assert set(recording.delivered) == good
    assert await dead_letters_by_event(connection) == dict.fromkeys(poison, 1)


@pytest.mark.parametrize("order", ["none", "subject"])
@pytest.mark.parametrize("raises", [KeyError, Failed, ConnectionResetError, Unavailable])
@pytest.mark.parametrize("poisons", [2, 7])
@pytest.mark.asyncio
async def test_poison_events_do_not_stop_a_route(live, poisons, raises, order):
    """Good events arrive after a route had only poison events, and each poison event becomes a dead letter.

    Fails when: the circuit breaker counts one event twice, a trial delivery is always one that has failed, or only the
    trial delivery closes the circuit breaker.
    """

    async def behave(delivery):
        if delivery.event.data["note"] == "poison":
            raise raises("poison")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, backoff=0.05, backoff_max=0.2, trial_interval_max=0.2, order=order)
        async with delivering(live.dsn, recording.target()):
            poison = {await insert_event(connection, note="poison") for _ in range(poisons)}
            await wait_until(
                lambda: connection.fetchval("select count(*) >= $1 from iu_route_attempt", poisons + 2), "attempts"
            )
            good = set()
            while await count_deliveries(connection) or len(good) < 5:
                good.add(await insert_event(connection, note="good"))
                await wait_until(lambda: asyncio.sleep(0, good <= set(recording.delivered)), "the good event", 10)
            await ended(connection, recording, good, poison)


@pytest.mark.asyncio
async def test_an_outage_spends_no_attempt_of_good_or_poison_events(live):
    """In an outage no event of a route, good or poison, spends an attempt.

    After the outage each good event is delivered and each poison event becomes a dead letter.

    Fails when: the attempts of an outage are not given back, or are given back for ever.
    """
    down = True

    async def behave(delivery):
        if down:
            raise ConnectionRefusedError
        if delivery.event.data["note"] == "poison":
            raise Reject("poison") if delivery.id % 2 else ValueError("poison")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, attempts=3, backoff=0.02, backoff_max=0.1, trial_interval_max=0.1, breaker=3)
        async with delivering(live.dsn, recording.target()):
            poison = {await insert_event(connection, note="poison") for _ in range(10)}
            good = {await insert_event(connection, note="good") for _ in range(10)}
            await wait_until(lambda: connection.fetchval("select trials >= 20 from iu_delivery_breaker"), "trials")
            assert await connection.fetchval("select max(tries) from iu_route_delivery") == 0
            down = False
            await ended(connection, recording, good, poison)


@pytest.mark.asyncio
@pytest.mark.parametrize("stopped", ["null", "now()"], ids=["breaker", "budget"])
@pytest.mark.parametrize("order", ["none", "subject"])
async def test_a_quarantined_delivery_can_be_the_trial_delivery(live, order, stopped):
    """If all deliveries of a paused route are in quarantine, one of them becomes the trial delivery and ends the pause.

    The pause comes from an open circuit breaker or from a spent budget of dead letters.

    Fails when: a delivery in quarantine is given back because its route is paused.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection, order=order)
        await connection.execute(MANY, 5)
        await drain(connection)
        await connection.execute("update iu_route_delivery set alone = true, due_at = now(), failed_at = now()")
        await connection.execute(
            f"""insert into iu_delivery_breaker (route_code, opened_at, trial_at, stopped_at)
                values ($1, now(), now(), {stopped})""",
            ROUTE,
        )
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
        assert len(recording.delivered) == 5
        assert recording.max_running == 1


@pytest.mark.asyncio
async def test_a_trial_delivery_waits_for_its_time(live):
    """A take gives no trial delivery before trial_at, although the consumer holds no delivery.

    Fails when: a route without a trial delivery in flight counts as one whose trial delivery was lost.
    """
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await connection.execute(MANY, 3)
        await drain(connection)
        later = "insert into iu_delivery_breaker (route_code, opened_at, trial_at) values ($1, now(), now() + interval '1 hour')"
        await connection.execute(later, ROUTE)
        session = DeliverySession(connection, connection, Settings(dsn=live.dsn), uuid4())
        want = TakeRequest(route=ROUTE, capacity=10, position=0, deadline=1)
        assert (await session.take([want], [], [])).taken == []


@pytest.mark.asyncio
async def test_a_missing_trial_delivery_is_replaced_by_the_next_take(live):
    """If the consumer does not hold the trial delivery that the database records, the next take gets another at once.

    The consumer names the trial deliveries that it holds with each take. A trial delivery that was lost, or that an
    earlier consumer held, is not waited for.

    Fails when: the next trial delivery waits for the deadline of an attempt.
    """
    async with connected(live.dsn) as taker, connected(live.dsn) as settler, connected(live.dsn) as connection:
        await open_route(connection, deadline=3600)
        await connection.execute(MANY, 3)
        await drain(connection)
        await connection.execute(
            "insert into iu_delivery_breaker (route_code, opened_at, trial_at) values ($1, now(), now())", ROUTE
        )
        session = DeliverySession(settler, taker, Settings(dsn=live.dsn), uuid4())
        want = TakeRequest(route=ROUTE, capacity=10, position=0, deadline=1)
        first = await session.take([want], [], [])
        (probe,) = [taken.delivery.id for taken in first.taken]
        assert [state.trial_id for state in first.routes if state.route == ROUTE] == [probe]
        assert not (await session.take([want], [probe], [])).taken
        assert (await session.take([want], [], [])).taken


@pytest.mark.asyncio
async def test_a_take_does_not_open_a_breaker_that_a_settlement_has_closed(live):
    """A take that waits for a settlement which closes the circuit breaker does not open it again.

    Fails when: the trial delivery is recorded whatever the state of the circuit breaker is by then.
    """
    async with connected(live.dsn) as taker, connected(live.dsn) as settler, connected(live.dsn) as connection:
        await open_route(connection)
        await connection.execute(MANY, 3)
        await drain(connection)
        await connection.execute(OPENED, ROUTE, 0)
        session = DeliverySession(settler, taker, Settings(dsn=live.dsn), uuid4())
        want = TakeRequest(route=ROUTE, capacity=10, position=0, deadline=1)
        async with connection.transaction():
            await connection.execute("select fn_iu_breaker_success($1, $1)", [ROUTE])
            take = asyncio.create_task(session.take([want], [], []))
            waits = "select cardinality(pg_blocking_pids($1)) > 0"
            await wait_until(lambda: settler.fetchval(waits, taker.get_server_pid()), "the take waits")
        assert len((await take).taken) == 1
        row = await connection.fetchrow("select opened_at, trial_id from iu_delivery_breaker")
        assert tuple(row) == (None, None)


OPENED = "insert into iu_delivery_breaker (route_code, opened_at, trial_at, trials) values ($1, now(), now(), $2)"


ASKED = """select max(query_start) from pg_stat_activity
            where query ~ 'fn_iu_delivery_(take|sweep)' and pid <> pg_backend_pid()"""


async def further_questions(connection: asyncpg.Connection) -> None:
    """Wait until the consumer has asked for more three times, so that it has received two answers.

    The loop runs six times because a sweep may follow each take.
    """
    for _ in range(6):
        last = await connection.fetchval(ASKED)
        await wait_until(lambda last=last: connection.fetchval(f"select ({ASKED}) > $1", last), "a further question")


@pytest.mark.asyncio
async def test_a_trial_delivery_waits_for_free_concurrency(live):
    """While calls from before an outage use up the concurrency, the trial delivery waits, and begins after them.

    Fails when: the trial delivery is given back because the route is paused, and is taken again and again.
    """
    release = asyncio.Event()

    async def behave(delivery):
        if delivery.event.data["note"] == "slow":
            await release.wait()
            raise Failed("slow")

    recording = RecordingTarget(behave)
    async with connected(live.dsn) as connection:
        await open_route(connection, concurrency=2, deadline=3600)
        async with delivering(live.dsn, recording.target()) as recorder:
            for _ in range(2):
                await insert_event(connection, note="slow")
            await wait_until(lambda: asyncio.sleep(0, len(recording.calls) == 2), "slow calls")
            await connection.execute(OPENED, ROUTE, 0)
            await recorder.wait_for(RoutePaused)
            good = await insert_event(connection, note="good")
            probing = "select trial_at from iu_delivery_breaker where trial_id is not null"
            taken = await wait_until(lambda: connection.fetchval(probing), "a probe is taken")
            await further_questions(connection)
            assert await connection.fetchval(probing) == taken
            release.set()
            await wait_until(lambda: asyncio.sleep(0, good in recording.delivered), "the probe arrives")
            await recorder.wait_for(RouteResumed)
            await wait_until_settled(connection)


@pytest.mark.asyncio
@pytest.mark.parametrize("probes", [0, 1, 2])
async def test_only_one_trial_delivery_is_in_flight(live, probes):
    """While a trial delivery is in flight, no other delivery of the route begins, whether the next
    turn is a new or a failed one.

    Fails when: the consumer does not report that it holds the trial delivery.
    """
    release = asyncio.Event()
    recording = RecordingTarget(lambda _: release.wait())
    async with connected(live.dsn) as connection:
        await open_route(connection, deadline=3600)
        await connection.execute(MANY, 20)
        await drain(connection)
        await connection.execute(OPENED, ROUTE, probes)
        async with delivering(live.dsn, recording.target()):
            await wait_until(lambda: asyncio.sleep(0, recording.calls != []), "a probe")
            await further_questions(connection)
            assert recording.max_running == 1
            release.set()
            await wait_until_settled(connection)
        assert len(recording.delivered) == 20
