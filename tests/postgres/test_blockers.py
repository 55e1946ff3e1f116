"""Blockers that delay or threaten a consumer: the view v_iu_blocker, and the monitor that reports them."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from iu_listen.model.observation import BlockerCleared, BlockerFound
from iu_listen.postgres import queries
from iu_listen.postgres.lease import LEASE_KEY
from iu_listen.postgres.listener import BELL_KEY, SLOT_KEY
from support import connected, consuming, insert_event, wait_until

pytestmark = pytest.mark.asyncio


async def blockers(connection: asyncpg.Connection, what: str = "") -> list[dict[str, Any]]:
    """The rows of the view in this database, of one kind or of all."""
    rows = await queries.rows(connection, "blockers")
    return [r for r in rows if not what or r["what"] == what]


async def aged(connection: asyncpg.Connection, seconds: float) -> None:
    """Change the view so that all ages are this many seconds higher."""
    view = await connection.fetchval("select pg_get_viewdef('v_iu_blocker')")
    older = f"(clock_timestamp() + interval '{seconds} s')"
    await connection.execute("create or replace view v_iu_blocker as " + view.replace("clock_timestamp()", older))


async def test_a_healthy_database_has_no_blocker(live):
    """On a healthy database with producers, a consumer and its sessions there is no blocker."""
    async with consuming(live.dsn), connected(live.dsn) as writer, writer.transaction():
        await insert_event(writer)
        async with connected(live.dsn) as looker:
            assert await blockers(looker) == []


async def test_an_open_transaction_of_a_producer_is_reported(live):
    """A transaction that wrote events and stays open is named with pid, application, database, state and age.

    A reader is not named.

    Fails when: every open transaction is named, or only a transaction that wrote to another table.
    """
    async with connected(live.dsn) as writer, connected(live.dsn) as reader, connected(live.dsn) as looker:
        await writer.execute("set application_name = 'billing'")
        async with writer.transaction(), reader.transaction():
            await insert_event(writer)
            await reader.fetchval("select count(*) from event_outbox")
            await reader.fetchval("select pg_current_xact_id()")
            assert await blockers(looker, "late_event") == []
            await aged(looker, 30)
            (found,) = await blockers(looker, "late_event")
            assert found["pid"] == await writer.fetchval("select pg_backend_pid()")
            assert (found["application"], found["state"]) == ("billing", "idle in transaction")
            assert found["database"] == await looker.fetchval("select current_database()")
            assert 30 <= found["seconds"] < 90
        assert await blockers(looker, "late_event") == []


async def test_a_prepared_transaction_of_a_producer_is_reported(live):
    """A prepared transaction that wrote events is named by its gid; one that wrote none is no late event."""
    async with connected(live.dsn) as writer, connected(live.dsn) as looker:
        if await writer.fetchval("show max_prepared_transactions") == "0":
            pytest.skip("this server allows no prepared transactions")
        gid = "iu blocker " + await writer.fetchval("select current_database()")
        await aged(looker, 400)
        try:
            for suffix, statement in (("writes", None), ("other", "update dot_config set description = description")):
                await writer.execute("begin")
                await (writer.execute(statement) if statement else insert_event(writer))
                await writer.execute(f"prepare transaction '{gid} {suffix}'")
            (found,) = await blockers(looker, "late_event")
            assert (found["who"], found["state"]) == (f"prepared transaction {gid} writes", "prepared")
            held = [c for c in await blockers(looker, "vacuum") if c["who"].startswith("prepared transaction")]
            assert held[0]["xids"] >= 0
        finally:
            for suffix in ("writes", "other"):
                await writer.execute(f"rollback prepared '{gid} {suffix}'")


async def test_a_session_that_holds_back_vacuum_is_reported(live):
    """A session with an old snapshot is named, with the number of transactions that it holds back."""
    async with (
        connected(live.dsn) as looker,
        connected(live.dsn) as old,
        old.transaction(isolation="repeatable_read"),
    ):
        await old.fetchval("select count(*) from event_outbox")
        for _ in range(5):
            await insert_event(looker)
        await aged(looker, 400)
        pid = await old.fetchval("select pg_backend_pid()")
        found = [c for c in await blockers(looker, "vacuum") if c["pid"] == pid]
        assert found[0]["who"] == f"session pid {pid}"
        assert found[0]["xids"] >= 5


async def test_an_unused_replication_slot_is_reported(live):
    """A replication slot that holds back more than 100 000 transactions is named; a new one is not."""
    async with connected(live.dsn) as looker:
        view = await looker.fetchval("select pg_get_viewdef('v_iu_blocker')")
        assert "> 100000" in view
        slot = "iu_culprit_slot"
        await looker.execute("select pg_create_physical_replication_slot($1, true)", slot)
        try:
            assert await blockers(looker, "vacuum") == []
        finally:
            await looker.execute("select pg_drop_replication_slot($1)", slot)


@pytest.mark.parametrize(
    ("key", "what"),
    [(BELL_KEY, "bell_key"), (SLOT_KEY, "bell_key"), (LEASE_KEY, "lease")],
    ids=["bell", "slot", "lease"],
)
async def test_a_foreign_holder_of_our_advisory_locks_is_reported(live, key, what):
    """A session of another program that holds one of our advisory locks is named; a session of iu-listen is not.

    Fails when: the holder is not looked up, or our own sessions are named.
    """
    async with connected(live.dsn) as stranger, connected(live.dsn) as looker:
        await stranger.execute("set application_name = 'cron'")
        await stranger.fetchval("select pg_try_advisory_lock($1, 1)", key)
        (found,) = await blockers(looker)
        assert (found["what"], found["application"]) == (what, "cron")
        assert f"({key}, 1)" in found["effect"]
        await stranger.execute("set application_name = 'iu-listen listener x'")
        assert await blockers(looker) == []


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("alter table event_outbox disable trigger zz_event_outbox_bell", "disabled"),
        ("alter table event_outbox enable trigger zz_event_outbox_bell", "not always"),
        ("alter table event_outbox enable replica trigger zz_event_outbox_bell", "replica only"),
        ("drop trigger zz_event_outbox_bell on event_outbox", "missing"),
    ],
)
async def test_a_trigger_that_does_not_fire_is_reported(live, change, state):
    """A trigger of the package that is missing, disabled or not ENABLE ALWAYS is named with its effect."""
    async with connected(live.dsn) as looker:
        await looker.execute(change)
        (found,) = await blockers(looker)
        assert (found["what"], found["who"], found["state"]) == ("trigger", "event_outbox.zz_event_outbox_bell", state)
        assert "catch-up poll" in found["effect"]


async def test_the_consumer_reports_blockers_by_name(live):
    """A running consumer reports a disabled trigger once, by name, and reports when it is enabled again."""
    async with consuming(live.dsn, catch_up=0.5) as seen, connected(live.dsn) as admin:
        await admin.execute("alter table event_outbox disable trigger zz_event_outbox_bell")
        told = await seen.wait_for(BlockerFound)
        assert told.blocker.who == "event_outbox.zz_event_outbox_bell"
        await admin.execute("alter table event_outbox enable always trigger zz_event_outbox_bell")
        assert (await seen.wait_for(BlockerCleared)).blocker.key == told.blocker.key
        assert len(seen.of(BlockerFound)) == 1


async def test_the_monitor_has_its_own_session(live):
    """While the consumer works, the monitor has a session, which is idle and outside any transaction."""
    async with consuming(live.dsn), connected(live.dsn) as looker:

        async def patrols() -> Any:
            return await looker.fetchval(
                """select true from pg_stat_activity where application_name like 'iu-listen monitor %'
                      and datname = current_database() and state = 'idle' and xact_start is null"""
            )

        await wait_until(patrols, "the patrol has its session")
