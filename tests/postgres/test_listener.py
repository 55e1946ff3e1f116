"""A consumer that only the bell wakes: the catch-up poll is out of reach, so each
wake-up here comes from the trigger."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from contextlib import AsyncExitStack, nullcontext
from itertools import chain

import anyio
import pytest

from iu_listen.model.observation import BatchRan, Listening, NotificationMissed, StateChanged
from iu_listen.model.routing import State, Wake
from postgres.listener_helpers import (
    NO_CATCH_UP,
    count_armed_locks,
    count_shared_locks,
    counting_notifications,
    wait_until_armed,
)
from support import attempted, connected, consuming, insert_event, open_gate, wait_until

pytestmark = pytest.mark.asyncio


async def routed(connection, events, within: float = 15) -> None:
    """Wait until exactly these events were attempted."""

    async def all_there() -> bool:
        return await connection.fetchval("select count(*) from iu_route_attempt") >= len(events)

    await wait_until(all_there, f"{len(events)} events are attempted", within)
    assert Counter(await attempted(connection)) == Counter(events)


async def test_one_insert_wakes_an_idle_consumer(live):
    """A commit wakes an idle consumer, which routes the event. Fails when: the trigger does not notify."""
    async with connected(live.dsn) as writer, consuming(live.dsn, **NO_CATCH_UP) as seen:
        await wait_until_armed(writer)
        await insert_event(writer)
        ran = await seen.wait_for(BatchRan, lambda b: b.batch.seen)
        assert (ran.wake, ran.batch.seen) == (Wake.NOTIFY, 1)


@pytest.mark.slow
async def test_no_burst_waits_for_the_catch_up_poll(live):
    """Three hundred bursts at random moments, before, during and after the consumer
    becomes idle, are all routed at once.

    Fails when: the ring is cleared after the batch, the batch after arming is taken out, or producers may stay silent
    without holding their lock until they are visible.
    """
    rng, events = random.Random(726), []
    async with consuming(live.dsn, **NO_CATCH_UP, linger=0.01) as seen, anyio.create_task_group() as tasks:
        async with connected(live.dsn) as a, connected(live.dsn) as b, connected(live.dsn) as c:

            async def burst(writer, size: int) -> None:
                # One transaction for the burst, or one for each event.
                async with writer.transaction() if rng.random() < 0.3 else nullcontext():
                    events.extend([await insert_event(writer) for _ in range(size)])

            for _ in range(300):
                writers = rng.sample([a, b, c], rng.randint(1, 3))
                await asyncio.gather(*(burst(writer, rng.choice([1, 1, 2, 5, 20])) for writer in writers))
                if rng.random() < 0.5:
                    await routed(a, events, within=5)
                # The pause places the next burst at a random moment: from at once to long after the consumer is idle.
                await anyio.sleep(rng.choice([0, rng.uniform(0, 0.004), rng.uniform(0, 0.03)]))
            await routed(a, events, within=5)
        assert not [b for b in seen.of(BatchRan) if b.wake is Wake.CATCH_UP]
        assert not seen.of(NotificationMissed)
        tasks.cancel_scope.cancel()


async def test_producers_rarely_notify_under_load(live):
    """While a stream of commits keeps the consumer busy, fewer than a quarter of them notify.

    Fails when: a busy period does not disarm.
    """
    async with (
        connected(live.dsn) as admin,
        counting_notifications(live.dsn) as heard,
        consuming(live.dsn, **NO_CATCH_UP, linger=0.5),
        AsyncExitStack() as stack,
    ):

        async def stream(writer):
            return [await insert_event(writer) for _ in range(500)]

        writers = [await stack.enter_async_context(connected(live.dsn)) for _ in range(4)]
        await wait_until_armed(admin)
        await heard()
        events = list(chain.from_iterable(await asyncio.gather(*map(stream, writers))))
        assert await heard() < len(events) / 4
        await routed(admin, events)
        await wait_until_armed(admin)


async def test_a_producer_that_sent_no_notify_prevents_arming_until_it_commits(live):
    """A producer that sent no NOTIFY and has not committed prevents arming; its event is routed within
    100 ms (median) after its commit.

    Fails when: the consumer becomes idle although arming was refused, or its pauses grow beyond ARM_WAIT_MAX.
    """
    took = []
    async with connected(live.dsn) as writer, connected(live.dsn) as admin:
        for _ in range(5):
            transaction = writer.transaction()
            await transaction.start()
            event = await insert_event(writer)
            await writer.execute("set constraints all immediate")
            assert await count_shared_locks(admin) == 2
            async with consuming(live.dsn, **NO_CATCH_UP) as seen:
                for _ in range(20):
                    looks = len(seen.of(BatchRan))
                    await wait_until(lambda looks=looks: _more(seen, looks), "it looks again")
                assert await count_armed_locks(admin) == 0
                assert not await admin.fetchval("select count(*) from iu_route_attempt where event_ref = $1", event)
                await transaction.commit()
                committed = time.monotonic()
                await seen.wait_for(BatchRan, lambda b: b.batch.seen == 1)
                took.append(time.monotonic() - committed)
                await wait_until_armed(admin)
    assert statistics.median(took) < 0.1


#: A trigger that fires after that of the bell and delays the commit while another session holds advisory lock 4713.
SLOW = """
    create function slow() returns trigger language plpgsql as
    $$ begin perform pg_advisory_xact_lock_shared(4713); return null; end $$;
    create constraint trigger zzz_slow after insert on event_outbox
        deferrable initially deferred for each row execute function slow()
"""


@pytest.mark.parametrize("asleep", [True, False], ids=["asleep", "awake"])
async def test_a_slow_commit_after_the_bell_trigger_wakes_the_consumer(live, asleep):
    """If other triggers take long between the trigger of the bell and the commit, the event wakes
    the consumer when it is visible.

    With an idle consumer the notification arrives with the commit, not with the trigger. With a busy one the lock of
    the silent producer prevents arming.

    Fails when: the lock is released before the commit is visible.
    """
    async with connected(live.dsn) as writer, connected(live.dsn) as admin, connected(live.dsn) as holder:
        await admin.execute(SLOW)
        await holder.fetchval("select pg_advisory_lock(4713)")
        stack = AsyncExitStack()
        if asleep:
            seen = await stack.enter_async_context(consuming(live.dsn, **NO_CATCH_UP))
            await wait_until_armed(admin)
        writing = asyncio.create_task(insert_event(writer))
        waits = "select wait_event = 'advisory' from pg_stat_activity where pid = $1"
        await wait_until(lambda: admin.fetchval(waits, writer.get_server_pid()), "the commit waits")
        if not asleep:
            assert await count_shared_locks(admin) == 2
            seen = await stack.enter_async_context(consuming(live.dsn, **NO_CATCH_UP))
        async with stack:
            looks = len(seen.of(BatchRan))
            if not asleep:
                await wait_until(lambda: _more(seen, looks + 10), "it looks again and again")
                assert await count_armed_locks(admin) == 0
            await holder.fetchval("select pg_advisory_unlock(4713)")
            await routed(admin, [await writing], within=5)
            await wait_until_armed(admin)


async def _more(seen, looks: int) -> bool:
    return len(seen.of(BatchRan)) > looks


async def test_a_consumer_of_another_domain_is_woken(live):
    """A consumer of any domain is woken by the bell, and finds no event without a notification.

    Fails when: the trigger knows domain iu only.
    """
    async with connected(live.dsn) as writer:
        await writer.execute(
            """insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
               values ('crm', 'alert', 'alert', 'immediate');
               insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
               select 'crm', 'crm', c.lineage from iu_route_worker_cursor c"""
        )
        async with consuming(live.dsn, worker="crm", **NO_CATCH_UP) as seen:
            await wait_until_armed(writer)
            await writer.execute(
                """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
                   values ('crm', 'alert', 'alert', 'immediate')"""
            )
            ran = await seen.wait_for(BatchRan, lambda b: b.batch.seen)
            assert ran.wake is Wake.NOTIFY
            assert not seen.of(NotificationMissed)


async def test_a_disabled_trigger_is_reported_as_a_missed_notification(live):
    """With the trigger disabled the catch-up poll finds the event, and reports a missed notification.

    Fails when: the report is taken out.
    """
    async with connected(live.dsn) as writer, consuming(live.dsn, catch_up=0.3) as seen:
        await writer.execute("alter table event_outbox disable trigger zz_event_outbox_bell")
        await wait_until_armed(writer)
        await insert_event(writer)
        assert (await seen.wait_for(NotificationMissed)).events == 1
        ran = await seen.wait_for(BatchRan, lambda b: b.batch.seen)
        assert ran.wake is Wake.CATCH_UP
        counted = "select (wakes ->> 'lost')::int = 1 from iu_consumer_heartbeat"
        await wait_until(lambda: writer.fetchval(counted), "the heartbeat counts it")


async def test_an_idle_consumer_works_within_a_second_after_the_gate_opens(applied):
    """An idle consumer behind a closed gate works within a second after the gate opens, and stops when it closes.

    Fails when: the trigger on dot_config is taken out.
    """
    async with connected(applied.dsn) as writer, consuming(applied.dsn, **NO_CATCH_UP) as seen:
        await seen.wait_for(StateChanged, lambda s: s.state is State.GATE_CLOSED)
        event = await insert_event(writer)
        await wait_until_armed(writer)
        began = time.monotonic()
        await open_gate(applied.dsn)
        ran = await seen.wait_for(BatchRan, lambda b: b.batch.seen)
        assert ran.wake is Wake.NOTIFY
        assert time.monotonic() - began < 1
        await routed(writer, [event])
        await wait_until_armed(writer)
        noted = len(seen.of(StateChanged))
        await open_gate(applied.dsn, "false")
        await wait_until(lambda: _closed(seen, noted), "the closed gate is noticed", timeout=1)


async def _closed(seen, noted: int) -> bool:
    return State.GATE_CLOSED in [s.state for s in seen.of(StateChanged)[noted:]]


#: Another session claims both slots of domain iu.
CLAIM_BOTH_SLOTS = "select pg_advisory_lock(726002, hashtext('iu/1')), pg_advisory_lock(726002, hashtext('iu/2'))"


async def _found(seen, events: int) -> bool:
    return sum(b.batch.seen for b in seen.of(BatchRan)) == events


async def _register(connection, *workers: str) -> None:
    for worker in workers:
        await connection.execute(
            """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
               select $1, 'iu', lineage from iu_outbox_anchor""",
            worker,
        )


async def test_two_consumers_arm_and_a_third_polls(live):
    """Two consumers take the slots; a third has none, reports it, polls, and loses no event.

    Fails when: a consumer without a slot arms, or waits for the catch-up poll.
    """
    async with connected(live.dsn) as writer:
        await _register(writer, "second", "third")
        async with (
            consuming(live.dsn, **NO_CATCH_UP, worker="second") as second,
            consuming(live.dsn, catch_up=0.5, worker="third") as third,
            consuming(live.dsn, **NO_CATCH_UP) as first,
        ):
            assert first.of(Listening)[0].slot is None
            await wait_until_armed(writer, 2)
            await insert_event(writer)
            for seen in (first, second, third):
                ran = await seen.wait_for(BatchRan, lambda b: b.batch.seen)
                assert ran.wake in (Wake.NOTIFY, Wake.LINGER, Wake.CATCH_UP)
            assert {s.of(Listening)[0].slot for s in (second, third)} == {1, 2}
            await insert_event(writer)
            await wait_until(lambda: _found(first, 2), "the consumer without a slot finds the next one", timeout=5)


async def _add_domains(connection, *domains: str) -> None:
    """Register a worker of the same name for each domain."""
    for domain in domains:
        await connection.execute(
            """insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
               values ($1, 'alert', 'alert', 'immediate') on conflict do nothing""",
            domain,
        )
        await connection.execute(
            """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
               select $1, $1, lineage from iu_outbox_anchor""",
            domain,
        )


async def test_every_domain_has_its_own_slots(live):
    """Consumers of three domains are all armed, and an event wakes only the consumer of its own domain.

    Fails when: all domains share the slots, or a consumer does not look at the payload of a notification.
    """
    async with connected(live.dsn) as writer:
        await _add_domains(writer, "crm", "erp")
        async with (
            consuming(live.dsn, **NO_CATCH_UP) as iu,
            consuming(live.dsn, **NO_CATCH_UP, worker="crm") as crm,
            consuming(live.dsn, **NO_CATCH_UP, worker="erp") as erp,
        ):
            await wait_until_armed(writer, 3)
            assert [s.of(Listening)[0].slot for s in (iu, crm, erp)] == [1, 1, 1]
            others = len(iu.of(BatchRan)), len(erp.of(BatchRan))
            for number in range(5):
                await writer.execute(
                    """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
                       values ('crm', 'alert', 'alert', 'immediate')"""
                )
                await wait_until(lambda n=number: _found(crm, n + 1), "the consumer of crm finds it", timeout=5)
            assert (len(iu.of(BatchRan)), len(erp.of(BatchRan))) == others
            assert not [s for s in (iu, crm, erp) if s.of(NotificationMissed)]


async def test_a_free_slot_is_taken(live):
    """A consumer that found every slot taken takes the first one that becomes free, and arms with it.

    Fails when: a consumer tries to get a slot only at its start.
    """
    async with connected(live.dsn) as admin, connected(live.dsn) as other:
        await other.fetchval(CLAIM_BOTH_SLOTS)
        async with consuming(live.dsn, catch_up=0.3) as seen:
            assert seen.of(Listening)[0].slot is None
            looks = len(seen.of(BatchRan))
            await wait_until(lambda: _more(seen, looks + 10), "it polls")
            assert await count_armed_locks(admin) == 0
            await other.fetchval("select pg_advisory_unlock(726002, hashtext('iu/2'))")
            await wait_until_armed(admin)


@pytest.mark.parametrize("function", ["pg_advisory_lock", "pg_advisory_lock_shared"])
async def test_a_foreign_holder_of_the_bell_keys_costs_no_event(live, function):
    """If another application holds the advisory keys of the bell, the consumer cannot arm, and polls instead.

    Fails when: a refused arming counts as a granted one.
    """
    async with connected(live.dsn) as writer, connected(live.dsn) as foreign:
        await foreign.fetchval(f"select {function}(726001, hashtext('iu/1')), {function}(726001, hashtext('iu/2'))")
        async with consuming(live.dsn, **NO_CATCH_UP) as seen:
            events = []
            for _ in range(10):
                events.append(await insert_event(writer))
                await routed(writer, events, within=2)
            assert Wake.CATCH_UP not in {b.wake for b in seen.of(BatchRan)}
            await foreign.fetchval("select pg_advisory_unlock_all()")
            await wait_until_armed(writer)
            events.append(await insert_event(writer))
            await routed(writer, events, within=2)


async def test_a_prepared_event_is_found_by_the_catch_up_poll(live):
    """An event of a prepared transaction, which may not notify, is found by the catch-up poll after its commit."""
    async with connected(live.dsn) as writer, connected(live.dsn) as admin:
        if await admin.fetchval("show max_prepared_transactions") == "0":
            pytest.skip("max_prepared_transactions is 0")
        async with consuming(live.dsn, catch_up=0.3):
            await wait_until_armed(admin)
            await writer.execute("begin")
            event = await insert_event(writer)
            await writer.execute("prepare transaction 'iu_listen_test'")
            await admin.execute("commit prepared 'iu_listen_test'")
            await routed(admin, [event], within=5)
