"""The site and the system identifier: a clone beside its original, another cluster, and a refusal that is kept."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from cli.command import run
from clusters import cluster, copy_of
from history.past import reanchor
from iu_listen import embedded
from iu_listen.model.observation import DeliveriesSettled, SessionFailed, StateChanged
from postgres.delivery_helpers import RecordingTarget, count_deliveries, delivering, open_route, wait_until_settled
from support import MANY, apply_package, connected, consuming, insert_event, open_gate, run_batch, wait_until

pytestmark = pytest.mark.asyncio


async def refusal(connection: asyncpg.Connection) -> str | None:
    return await connection.fetchval("select fn_iu_outbox_refusal(lineage, prev) from iu_route_worker_cursor")


@pytest.mark.slow
@pytest.mark.parametrize("major", embedded.MAJORS)
async def test_a_clone_beside_its_original_delivers_nothing(major: int):
    """A clone that runs beside its original, with its own consumer, delivers nothing until an operator accepts it.

    Fails when: the delivery session does not check its site.
    """
    first, second = RecordingTarget(), RecordingTarget()
    with cluster(major) as original:
        dsn = original.dsn("postgres")
        await apply_package(dsn)
        async with connected(dsn) as connection:
            await open_route(connection)
            async with delivering(dsn, first.target()):
                await connection.execute(MANY, 5)
                await wait_until_settled(connection)
                await connection.execute("update dot_config set value = 'false' where key = 'iu_core.delivery_enabled'")
                await connection.execute(MANY, 20)
                await wait_until(lambda: _waiting(connection, 20), "20 deliveries wait")
                with copy_of(original) as copy:
                    copy.start()
                    there = copy.dsn("postgres")
                    async with connected(there) as clone:
                        for one in (connection, clone):
                            await one.execute(
                                "update dot_config set value = 'true' where key = 'iu_core.delivery_enabled'"
                            )
                        async with delivering(there, second.target(), catch_up=0.5) as seen:
                            refused = await seen.wait_for(SessionFailed, lambda o: o.session == "delivery")
                            assert "may be a copy" in refused.why
                            await wait_until_settled(connection)
                            assert first.delivered.total() == 25
                            # The clone routes, because routing has no effect outside its database.
                            await clone.execute(MANY, 3)
                            await wait_until(lambda: _waiting(clone, 23), "the clone has routed")
                            assert second.calls == []
                            health = await asyncio.to_thread(run, "health", dsn=there)
                            assert health.code == 1
                            assert "is this database a copy?" in health.out
                            doctor = await asyncio.to_thread(run, "doctor", dsn=there)
                            assert "cursor site --accept" in doctor.out
                            done = await asyncio.to_thread(run, "cursor", "site", "--accept", "last", dsn=there)
                            assert done.code == 0, done.err
                            await wait_until_settled(clone)
                            assert second.delivered.total() == 23


async def _waiting(connection: asyncpg.Connection, count: int) -> bool:
    return await count_deliveries(connection) == count


async def test_a_standby_address_is_accepted_while_another_consumer_delivers(live):
    """A standby with another address becomes an accepted site while another consumer delivers, and can take over later.

    Fails when: only the first address is ever accepted.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        async with delivering(live.dsn, recording.target(), site="a") as first:
            await insert_event(connection)
            await first.wait_for(DeliveriesSettled)
            async with consuming(live.dsn, listening=False, waits_for=object, site="b"):
                await wait_until(lambda: _accepted(connection, "b"), "the second site is known")
        async with delivering(live.dsn, recording.target(), site="b"):
            await insert_event(connection)
            await wait_until_settled(connection)
        async with delivering(live.dsn, recording.target(), site="c") as third:
            await insert_event(connection)
            await third.wait_for(SessionFailed, lambda o: o.session == "delivery")
    assert recording.delivered.total() == 2


async def _accepted(connection: asyncpg.Connection, site: str) -> bool:
    return await connection.fetchval(
        "select count(*) from iu_outbox_site where site = $1 and accepted_at is not null", site
    )


async def test_a_refusal_is_kept_until_a_reanchor(live):
    """A cursor that was ahead of its server stays refused after the transaction ids have passed it, until a reanchor.

    Fails when: the batch does not store the reason of its refusal, because then events that were
    written meanwhile are skipped.
    """
    async with connected(live.dsn) as connection:
        ahead = "(x.top + 20) || ':' || (x.top + 20) || ':'"
        await connection.execute(
            f"update iu_route_worker_cursor set prev = ({ahead})::pg_snapshot"
            "  from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as top) x"
        )
        assert (await run_batch(connection))["reason"] == "cursor_ahead"
        events = [await insert_event(connection) for _ in range(40)]
        assert await refusal(connection) == "cursor_ahead"
        assert (await run_batch(connection))["reason"] == "cursor_ahead"
        await open_gate(live.dsn, "false")
        async with connected(live.dsn) as other:
            await reanchor(other)
        await open_gate(live.dsn)
        assert await refusal(connection) is None
        assert (await run_batch(connection))["seen"] == len(events)


async def test_another_cluster_is_refused(live):
    """With another system identifier no event is routed or delivered until a reanchor; pg_upgrade causes no refusal.

    Fails when: the identifier is not compared, or the major version is ignored.
    """
    recording = RecordingTarget()
    async with connected(live.dsn) as connection:
        await open_route(connection)
        await connection.execute("update iu_outbox_home set system_identifier = 7, major = 14")
        assert await connection.fetchval("select fn_iu_outbox_admission(null, false)") is None
        assert await connection.fetchval(
            "select system_identifier = (pg_control_system()).system_identifier from iu_outbox_home"
        )
        await connection.execute("update iu_outbox_home set system_identifier = 7")
        await insert_event(connection)
        async with delivering(live.dsn, recording.target()) as seen:
            said = await seen.wait_for(StateChanged, lambda o: o.why)
            assert said.why == "foreign_system"
            await seen.wait_for(SessionFailed, lambda o: o.session == "delivery")
        await open_gate(live.dsn, "false")
        async with connected(live.dsn) as other:
            await reanchor(other)
        await open_gate(live.dsn)
        async with delivering(live.dsn, recording.target()):
            await wait_until_settled(connection)
    assert recording.delivered.total() == 1
