"""The role of consumers, iu_listen_consumer: the permitted and the forbidden actions."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from typing import Any
from uuid import uuid4

import anyio
import asyncpg
import pytest

from conftest import Database
from deploy.role_helpers import (
    CONSUMER,
    GRANTED_PRIVILEGES,
    INSERT,
    INSERT_LARGE,
    LIVE_ROUTE,
    POISON,
    PREFIX,
    UNROUTED,
    Logins,
    acting_as,
    allowed,
    poison_event_id,
)
from iu_listen.admin.health import worker_health
from iu_listen.install import requirements
from iu_listen.model.delivery import Outcome, Result, Search, TakeRequest
from iu_listen.model.observation import BatchRan, LeaseTaken
from iu_listen.model.routing import BatchFailure, State, Tally
from iu_listen.model.settings import Settings
from iu_listen.postgres import queries
from iu_listen.postgres.completeness import CompletenessSession
from iu_listen.postgres.delivery import DeliverySession
from iu_listen.postgres.lease import LEASE_KEY
from iu_listen.postgres.metrics import MetricsSession
from iu_listen.postgres.sqlfiles import query
from iu_listen.postgres.worker import WorkerSession
from support import WORKER, connected, consuming, open_gate, run_batch, wait_until


def test_a_consumer_runs_with_only_the_consumer_role(applied: Database, roles: Logins) -> None:
    """A login role with only iu_listen_consumer listens, routes, skips, makes dead letters and passes the probe."""
    dsn = roles.add(CONSUMER)

    async def run() -> None:
        await open_gate(applied.dsn)
        async with connected(applied.dsn) as owner:
            await owner.execute(POISON.format(prefix=PREFIX))
            await owner.execute(UNROUTED)
            async with consuming(dsn, catch_up=60, session_timeout=120) as recorder:
                good, bad, lonely = uuid4(), poison_event_id(), uuid4()
                await owner.execute(INSERT, good, "version_applied")
                await owner.execute(INSERT, bad, "version_applied")
                await owner.execute(INSERT, lonely, "noted")

                async def decided() -> Any:
                    found = await owner.fetch("select event_ref, status from iu_route_attempt")
                    return len(found) == 3 and {row["event_ref"]: row["status"] for row in found}

                assert await wait_until(decided, "all three are decided") == {
                    good: "dry_run", bad: "failed", lonely: "skipped",
                }  # fmt: skip
                assert await owner.fetchval("select event_ref from iu_route_dead_letter") == bad
                ran = await recorder.wait_for(BatchRan, lambda o: o.batch.dead_lettered == 1)
                assert [(d.route, d.count, d.event) for d in ran.dead_letters] == [
                    ("iu.version_applied.workflow", 1, str(bad))
                ]
                assert (
                    await owner.fetchval("select count(*) from iu_consumer_heartbeat where listening is not null") == 1
                )
                probe = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "iu_listen", "health", "--here", "--dsn", dsn, stderr=asyncio.subprocess.PIPE
                )
                _, errors = await probe.communicate()
                assert probe.returncode == 0, errors.decode()

    asyncio.run(run())


def test_a_standby_runs_with_only_the_consumer_role(applied: Database, roles: Logins) -> None:
    """A standby with only iu_listen_consumer has a heartbeat, and takes over the lease when the first consumer ends."""
    dsn = roles.add(CONSUMER)

    async def run() -> None:
        await open_gate(applied.dsn)
        async with connected(applied.dsn) as owner:
            async with consuming(dsn, catch_up=0.2):
                second = asyncio.create_task(_stand_by(dsn))

                async def standing() -> Any:
                    return await owner.fetchval("select 1 from iu_consumer_heartbeat where state = 'standing_by'")

                await wait_until(standing, "the second one stands by")
            assert await second

    asyncio.run(run())


async def _stand_by(dsn: str) -> bool:
    async with consuming(dsn, catch_up=0.2) as recorder:
        return bool(recorder.of(LeaseTaken))


async def run_consumer_statements(connection: asyncpg.Connection) -> None:
    """Run every statement of `iu-listen run` and the probe, in the transaction of the caller."""
    settings = Settings.load({}, {"dsn": "postgresql://unused"})
    await requirements.require_primary(connection)
    await requirements.require_package(connection)
    await requirements.require_worker(connection, WORKER)
    await queries.rows(connection, "target")
    session = WorkerSession(connection, settings, uuid4(), "0")
    holder = await session.take_lease()
    assert holder is None, holder
    await connection.fetchval(query("lease_holder"), LEASE_KEY, WORKER)
    for site in ("a", "b"):
        await connection.fetchval(query("admission"), site, WORKER, uuid4())
        await connection.fetchval(query("admission"), site, WORKER, uuid4())
    for kind in (State.IDLE, State.BUSY):
        await session.beat(kind, "", True, "", Tally())
    answer = await run_batch(connection)
    # Dead letters are the poison event and the one that the seam refuses; more if a privilege for delivery is missing.
    assert (answer["seen"], answer["skipped"], answer["queued"]) == (7, 1, 4), answer
    assert answer["dead_lettered"] >= 2, answer
    # A run without events takes no lock.
    await run_batch(connection)
    await session.note_failure(1000, BatchFailure(why="refused"))
    await run_dispatcher_statements(connection, settings)
    await connection.execute("listen iu_event_outbox")
    await connection.fetchval("select pg_notify('iu_event_outbox', 'token')")
    await worker_health(connection, WORKER)
    # `run --until-idle` of version 0.1.0 reads the view.
    await connection.fetch("select from v_iu_event_backlog where worker_name = $1", WORKER)
    await queries.value(connection, "host_beats", "somewhere", WORKER)
    await queries.rows(connection, "blockers")
    await queries.value(connection, "backend_works", 1)
    completeness_session = CompletenessSession(connection, settings)
    assert await completeness_session.due() == 0
    page = await completeness_session.page(1000, None)
    while not page.over:
        page = await completeness_session.page(1000, page.number)
    # One more event is before the cursor and has lost its attempt.
    assert (page.status, page.missing) == ("passed", 1)
    await queries.rows(connection, "completeness/passes", 10)
    metrics_session = MetricsSession(connection, settings)
    for _ in range(2):
        await metrics_session.measure()
    # A batch with an event that is given up, with more than ten routes for an event, or with more than 64 routes calls
    # these functions.
    await connection.execute(
        "select fn_iu_batch_give_up(null, null, null, null), fn_iu_batch_shorten(null, null, null, true, 1),"
        " fn_iu_route_candidates(null, null, null)"
    )
    # A batch with a cursor ahead of its server calls this function; the transaction is rolled back.
    await connection.execute("select fn_iu_outbox_refuse('cursor_ahead')")


async def run_dispatcher_statements(connection: asyncpg.Connection, settings: Settings) -> None:
    """Take the queued deliveries, and settle them in every possible way."""
    brief = dataclasses.replace(settings, session_timeout=0.02)
    deliveries = DeliverySession(connection, connection, brief, uuid4())
    successor = DeliverySession(connection, connection, brief, uuid4())
    lease = await deliveries.take_lease()
    assert lease.held
    handed = await connection.fetch("select from fn_iu_delivery_hand_over($1, '{queued}', '{10}', '{0}')", WORKER)
    assert len(handed) == 4
    want = TakeRequest(route="queued", capacity=10, position=0, deadline=30)
    supply = await deliveries.take([want], [], [])
    await deliveries.sweep([Search(route="queued", from_key=0, after_id=0, position=1)])
    results = [Result.UNAVAILABLE, Result.FAILED, Result.REJECTED, Result.SENT]
    done = [
        Outcome(taken=t, result=r, began=0, ended=0, code="x", called="it")
        for t, r in zip(supply.taken, results, strict=True)
    ]
    # The rejection uses up the budget of dead letters; then a trial delivery succeeds, and the route continues.
    assert await deliveries.settle(done[:3]) == 1
    assert [outcome.dead_letter for outcome in done[:3]] == [False, False, True]
    assert (await deliveries.take([want], [], [])).taken
    assert await deliveries.settle(done[3:]) == 0
    await connection.fetch(query("delivery/peek"), WORKER, ["queued"])
    decided = await deliveries.of_call("queued", supply.taken[2].delivery.event.id, sent=True)
    assert decided is not None
    assert decided.attempt == 2
    waiting = [("queued", taken.delivery.id) for taken in supply.taken[:2]]
    await connection.fetchval(
        query("delivery/unrecorded"),
        WORKER,
        deliveries._consumer,
        *waiting[1],
        "outcome_refused",
        "refused by a trigger",
    )
    # Leases that are lost without being given back, with one in-flight delivery, and with several.
    for flight in (waiting[:1], waiting):
        assert await deliveries.record_in_flight(flight)
        with anyio.fail_after(5):
            while not (lease := await successor.take_lease()).held:
                await anyio.sleep(0.01)
        assert lease.unclean
        deliveries, successor = successor, deliveries
    for unusable in ({"queued": ("no coroutine", "--app")}, {"queued": ("no secret", "")}, {}):
        await deliveries.note_unusable(unusable)
    await deliveries.release()


@pytest.mark.slow
def test_a_consumer_needs_each_of_its_privileges(applied: Database, roles: Logins) -> None:
    """Without any single privilege of iu_listen_consumer, down to the column, a consumer cannot work."""

    async def run() -> None:
        async with connected(applied.dsn) as owner:
            await owner.execute(POISON.format(prefix=PREFIX))
            await owner.execute(UNROUTED)
            await owner.execute(LIVE_ROUTE)
            await open_gate(applied.dsn)
            await owner.execute(INSERT, uuid4(), "version_applied")
            await run_batch(owner)
            await owner.execute("delete from iu_route_attempt")
            # The state after pg_upgrade.
            await owner.execute("update iu_outbox_home set system_identifier = 7, major = 14")
            granted = [row["what"] for row in await owner.fetch(GRANTED_PRIVILEGES, CONSUMER)]
            assert len(granted) > 50
            unneeded = []
            for revoked in [None, *granted]:
                transaction = owner.transaction()
                await transaction.start()
                try:
                    if revoked:
                        await owner.execute(f"revoke {revoked} from {CONSUMER}")
                    await owner.execute(INSERT, uuid4(), "version_applied")
                    await owner.execute(INSERT, poison_event_id(), "version_applied")
                    await owner.execute(INSERT, uuid4(), "noted")
                    for _ in range(4):
                        await owner.execute(INSERT_LARGE, uuid4(), "sent")
                    async with acting_as(owner, CONSUMER):
                        await run_consumer_statements(owner)
                    # The worker makes a dead letter of an event whose routing failed, and records the reason.
                    reasons = await owner.fetchval("select string_agg(failure_detail, ' ') from iu_route_dead_letter")
                    if revoked and "permission denied" not in reasons:
                        unneeded.append(revoked)
                except Exception as error:
                    if revoked is None or "permission denied" not in str(error):
                        raise AssertionError(f"without {revoked}") from error
                finally:
                    await transaction.rollback()
                    await owner.execute("select pg_advisory_unlock_all()")
            assert unneeded == []

    asyncio.run(run())


#: Statements that a consumer may not execute.
FORBIDDEN = (
    "update dot_config set value = 'true' where key = 'iu_core.route_worker_enabled'",
    "insert into dot_config (key, value) values ('iu_core.more', 'true')",
    "delete from dot_config",
    (
        "insert into event_outbox (event_domain, event_type, event_stream, delivery_lane) "
        "values ('iu', 'version_applied', 'update', 'immediate')"
    ),
    "update event_outbox set safe_payload = '{}'",
    "delete from event_outbox",
    "truncate event_outbox",
    "select nextval('event_outbox_event_seq') from iu_outbox_anchor where setval('event_outbox_event_seq', 1) = 1",
    "update iu_route_attempt set status = 'sent'",
    "delete from iu_route_attempt",
    "select decision from iu_route_attempt",
    "update iu_completeness_missing set accepted_at = now()",
    "select fn_iu_completeness_repair('iu_outbound_default')",
    "update event_outbox set event_seq = 1",
    "delete from iu_route_dead_letter",
    "update iu_route_dead_letter set idempotency_key = 'x'",
    "select fn_iu_route_dead_letter_replay(gen_random_uuid())",
    "update iu_outbound_route set enabled = true, dry_run = false",
    "insert into iu_route_worker_cursor (worker_name, event_domain, lineage) values ('x', 'iu', gen_random_uuid())",
    "update iu_route_worker_cursor set event_domain = 'system'",
    "update iu_route_worker_cursor set lineage = gen_random_uuid()",
    "select fn_iu_outbox_reanchor(p_plan => true)",
    "delete from iu_route_worker_cursor",
    "update iu_outbox_anchor set one = true",
    "delete from iu_outbox_anchor",
    "delete from iu_migration",
    "select * from information_unit",
    "select * from unit_version",
    "alter table event_outbox disable trigger zz_event_outbox_bell",
    "alter table iu_route_attempt add column x int",
    "drop function fn_iu_ring_bell()",
    "create or replace function fn_iu_route_worker_enabled() returns boolean language sql as 'select true'",
    "create table public.mine (x int)",
    "create schema mine",
    "create role mine",
    "set session_replication_role = replica",
    "set role iu_listen_operator",
    "copy event_outbox to program 'cat'",
)


def test_a_consumer_is_refused_every_forbidden_statement(applied: Database, roles: Logins) -> None:
    """A consumer cannot open a gate, write events, change the audit, resolve, create objects, or read units."""
    dsn = roles.add(CONSUMER)

    assert allowed(dsn, FORBIDDEN) == []
