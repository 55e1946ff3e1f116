"""deploy/postgres/roles.sql on real servers: the permitted and the forbidden actions of each role.

Roles belong to the cluster: login roles have random names and are dropped; group roles are dropped if they did not
exist before.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from conftest import Database
from iu_listen.admin import dead_letters, doctor, gates, retention, routes, traces
from iu_listen.admin import dead_letters as letters
from iu_listen.admin.health import worker_health
from iu_listen.install import migrate, requirements, verify
from iu_listen.model.delivery import Outcome, Result, Search, TakeRequest
from iu_listen.model.observation import BatchRan, LeaseTaken
from iu_listen.model.routing import CHANNEL, BatchFailure, State, Tally
from iu_listen.model.settings import Settings
from iu_listen.postgres import completeness, queries
from iu_listen.postgres.completeness import CompletenessSession
from iu_listen.postgres.delivery import DeliverySession
from iu_listen.postgres.lease import LEASE_KEY
from iu_listen.postgres.listener import BELL_KEY
from iu_listen.postgres.metrics import MetricsSession
from iu_listen.postgres.sqlfiles import query
from iu_listen.postgres.trace import TraceSession
from iu_listen.postgres.worker import WorkerSession
from support import WORKER, connected, consuming, open_gate, run_batch, wait_until

ROLES = (Path(__file__).parents[2] / "deploy" / "postgres" / "roles.sql").read_text()
PRODUCERS = (Path(__file__).parents[2] / "deploy" / "postgres" / "producers.sql").read_text()
CONSUMER, READER, OPERATOR, JANITOR, EXPORTER = GROUPS = (
    "iu_listen_consumer", "iu_listen_reader", "iu_listen_operator", "iu_listen_janitor", "iu_listen_exporter",
)  # fmt: skip

#: Removes all default privileges, as in a database with strict administration.
HARDEN = """
    revoke all on schema public from public;
    revoke execute on all functions in schema public from public;
"""
#: An event whose id has this prefix cannot be recorded as dry run: the worker makes a dead letter of it.
POISON = """
    create function poison() returns trigger language plpgsql as $$
    begin raise exception 'poisoned'; end $$;
    create trigger poison before insert on iu_route_attempt for each row
        when (new.status = 'dry_run' and new.event_ref::text like '{prefix}%') execute function poison();
"""
#: A registered event type without a route.
UNROUTED = """
    insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
    values ('iu', 'noted', 'update', 'immediate')
"""
#: A route that may deliver, so that the seam is called.
LIVE_ROUTE = """
    update dot_config set value = 'true' where key = 'iu_core.delivery_enabled';
    update dot_config set value = 'live,called,queued' where key = 'iu_core.delivery_live_routes';
    update dot_config set value = 'public.target' where key = 'iu_core.delivery_sql_functions';
    create function public.target(idempotency_key text, event jsonb) returns void language sql as '';
    insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
    values ('iu', 'sent', 'update', 'immediate');
    insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run,
                                   delivery_policy)
    values ('live', 'iu', 'sent', 'update', 'vector', 'x', true, false, '{}'),
           ('queued', 'iu', 'sent', 'update', 'workflow', 'x', true, false,
            '{"dead_letters_in_a_row": 1, "probe_max": 0.01}'),
           ('called', 'iu', 'sent', 'update', 'sql_function', 'public.target', true, false, '{}')
"""
INSERT = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane)
    values ($1, 'iu', $2, 'update', 'immediate')
"""
INSERT_LARGE = """
    insert into event_outbox (id, event_domain, event_type, event_stream, delivery_lane, safe_payload)
    values ($1, 'iu', $2, 'update', 'immediate', jsonb_build_object('note', repeat('x', 5000)))
"""
PREFIX = "dead0000"


def poisonous() -> UUID:
    """An event id with the prefix of POISON."""
    return UUID(PREFIX + uuid4().hex[8:])


class Logins:
    """The login roles of one test."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.names: list[str] = []

    def add(self, *groups: str) -> str:
        """Create a login role in these groups; return its DSN."""
        name, password = f"iu_test_{secrets.token_hex(6)}", secrets.token_hex(12)
        within = f" in role {', '.join(groups)}" if groups else ""
        execute(self._database.dsn, f"create role {name} login password '{password}'{within}")
        self.names.append(name)
        parts = urlsplit(self._database.dsn)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{name}:{password}@{host}"))


def execute(dsn: str, *statements: str) -> None:
    async def run() -> None:
        async with connected(dsn) as connection:
            for statement in statements:
                await connection.execute(statement)

    asyncio.run(run())


def fetchval(dsn: str, statement: str, *args: Any) -> Any:
    async def run() -> Any:
        async with connected(dsn) as connection:
            return await connection.fetchval(statement, *args)

    return asyncio.run(run())


@pytest.fixture
def roles(applied: Database) -> Iterator[Logins]:
    """A strict database with the package and the roles; yields a factory of login roles."""
    before = fetchval(applied.dsn, "select array_agg(rolname::text) from pg_roles") or []
    execute(applied.dsn, HARDEN, ROLES)
    logins = Logins(applied)
    yield logins
    for name in [*logins.names, *(group for group in GROUPS if group not in before)]:
        execute(applied.dsn, f"drop owned by {name}")
        # Another run on the same server may depend on the group role by now.
        with contextlib.suppress(asyncpg.DependentObjectsStillExistError):
            execute(applied.dsn, f"drop role {name}")


@asynccontextmanager
async def acting_as(connection: asyncpg.Connection, role: str) -> AsyncIterator[None]:
    """Use a role for the length of a block; call this within a transaction."""
    await connection.execute(f"set local role {role}")
    yield
    await connection.execute("reset role")


async def refused(connection: asyncpg.Connection, statement: str) -> bool:
    """Whether a statement fails because of a missing privilege, and for no other reason."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    finally:
        await transaction.rollback()
    return False


# -- consumer ------------------------------------------------------------------------------------------------------


def test_a_whole_consumer_runs_with_nothing_but_the_consumer_role(applied: Database, roles: Logins) -> None:
    """A login role with only iu_listen_consumer listens, routes, skips, makes dead letters and passes the probe."""
    dsn = roles.add(CONSUMER)

    async def run() -> None:
        await open_gate(applied.dsn)
        async with connected(applied.dsn) as owner:
            await owner.execute(POISON.format(prefix=PREFIX))
            await owner.execute(UNROUTED)
            async with consuming(dsn, catch_up=60, session_timeout=120) as recorder:
                good, bad, lonely = uuid4(), poisonous(), uuid4()
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
                await recorder.wait_for(BatchRan, lambda o: o.batch.dead_lettered == 1)
                assert (
                    await owner.fetchval("select count(*) from iu_consumer_heartbeat where listening is not null") == 1
                )
                probe = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "iu_listen", "health", "--here", "--dsn", dsn, stderr=asyncio.subprocess.PIPE
                )
                _, errors = await probe.communicate()
                assert probe.returncode == 0, errors.decode()

    asyncio.run(run())


def test_a_second_consumer_stands_by_with_the_consumer_role(applied: Database, roles: Logins) -> None:
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


async def what_a_consumer_does(connection: asyncpg.Connection) -> None:
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
    await what_a_courier_does(connection, settings)
    await connection.execute("listen iu_event_outbox")
    await connection.fetchval("select pg_notify('iu_event_outbox', 'token')")
    await worker_health(connection, WORKER)
    await queries.value(connection, "host_beats", "somewhere", WORKER)
    await queries.rows(connection, "blockers")
    await queries.value(connection, "backend_works", 1)
    auditor = CompletenessSession(connection, settings)
    assert await auditor.due() == 0
    page = await auditor.page(1000, None)
    while not page.over:
        page = await auditor.page(1000, page.number)
    # One more event is before the cursor and has lost its attempt.
    assert (page.status, page.missing) == ("passed", 1)
    await queries.rows(connection, "completeness/passes")
    surveyor = MetricsSession(connection, settings)
    for _ in range(2):
        await surveyor.measure()
    # A batch with a cursor ahead of its server calls this function; the transaction is rolled back.
    await connection.execute("select fn_iu_outbox_refuse('cursor_ahead')")


async def what_a_courier_does(connection: asyncpg.Connection, settings: Settings) -> None:
    """Take the queued deliveries, and settle them in every possible way."""
    brief = dataclasses.replace(settings, session_timeout=0.02)
    deliveries = DeliverySession(connection, connection, brief, uuid4())
    successor = DeliverySession(connection, connection, brief, uuid4())
    lease = await deliveries.take_lease()
    assert lease.held
    handed = await connection.fetch("select from fn_iu_delivery_hand_over($1, '{queued}', '{10}', '{0}')", WORKER)
    assert len(handed) == 4
    want = TakeRequest(route="queued", room=10, after=0, deadline=30)
    supply = await deliveries.take([want], [], [])
    await deliveries.sweep([Search(route="queued", key=0, behind=0, after=1)])
    results = [Result.UNAVAILABLE, Result.FAILED, Result.REJECTED, Result.SENT]
    done = [
        Outcome(taken=t, result=r, began=0, ended=0, code="x", called="it")
        for t, r in zip(supply.taken, results, strict=True)
    ]
    # The rejection uses up the budget of dead letters; then a trial delivery succeeds, and the route continues.
    assert await deliveries.settle(done[:3]) == 1
    assert (await deliveries.take([want], [], [])).taken
    assert await deliveries.settle(done[3:]) == 0
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
        assert await deliveries.in_flight(flight)
        with anyio.fail_after(5):
            while not (lease := await successor.take_lease()).held:
                await anyio.sleep(0.01)
        assert lease.unclean
        deliveries, successor = successor, deliveries
    for unusable in ({"queued": ("no coroutine", "--app")}, {"queued": ("no secret", "")}, {}):
        await deliveries.note_unusable(unusable)
    await deliveries.release()


GRANTED = """
    select format('%s on %s %s', a.privilege_type, 'table', c.oid::regclass) as what
      from pg_class c cross join lateral aclexplode(c.relacl) a
     where a.grantee = $1::regrole and c.relkind in ('r', 'v')
    union all
    select format('%s on sequence %s', a.privilege_type, c.oid::regclass)
      from pg_class c cross join lateral aclexplode(c.relacl) a
     where a.grantee = $1::regrole and c.relkind = 'S'
    union all
    select format('%s (%I) on table %s', a.privilege_type, t.attname, t.attrelid::regclass)
      from pg_attribute t cross join lateral aclexplode(t.attacl) a
     where a.grantee = $1::regrole
    union all
    select format('execute on function %s', p.oid::regprocedure)
      from pg_proc p cross join lateral aclexplode(p.proacl) a
     where a.grantee = $1::regrole
    union all
    select format('usage on schema %I', n.nspname)
      from pg_namespace n cross join lateral aclexplode(n.nspacl) a
     where a.grantee = $1::regrole
     order by 1
"""


@pytest.mark.slow
def test_the_consumer_role_has_nothing_to_spare(applied: Database, roles: Logins) -> None:
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
            granted = [row["what"] for row in await owner.fetch(GRANTED, CONSUMER)]
            assert len(granted) > 50
            spare = []
            for taken in [None, *granted]:
                transaction = owner.transaction()
                await transaction.start()
                try:
                    if taken:
                        await owner.execute(f"revoke {taken} from {CONSUMER}")
                    await owner.execute(INSERT, uuid4(), "version_applied")
                    await owner.execute(INSERT, poisonous(), "version_applied")
                    await owner.execute(INSERT, uuid4(), "noted")
                    for _ in range(4):
                        await owner.execute(INSERT_LARGE, uuid4(), "sent")
                    async with acting_as(owner, CONSUMER):
                        await what_a_consumer_does(owner)
                    # The worker makes a dead letter of an event whose routing failed, and records the reason.
                    reasons = await owner.fetchval("select string_agg(failure_detail, ' ') from iu_route_dead_letter")
                    if taken and "permission denied" not in reasons:
                        spare.append(taken)
                except Exception as error:
                    if taken is None or "permission denied" not in str(error):
                        raise AssertionError(f"without {taken}") from error
                finally:
                    await transaction.rollback()
                    await owner.execute("select pg_advisory_unlock_all()")
            assert spare == []

    asyncio.run(run())


def test_what_a_consumer_cannot_do(applied: Database, roles: Logins) -> None:
    """A consumer cannot open a gate, write events, change the audit, resolve, create objects, or read units."""
    dsn = roles.add(CONSUMER)
    statements = (
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

    async def run() -> None:
        async with connected(dsn) as consumer:
            allowed = [statement for statement in statements if not await refused(consumer, statement)]
            assert allowed == []

    asyncio.run(run())


# -- reader and operator -------------------------------------------------------------------------------------------


def test_a_reader_sees_the_state_and_changes_nothing(applied: Database, roles: Logins) -> None:
    """A login role with only iu_listen_reader runs every query of the state, in a read-only session."""
    dsn = roles.add(READER)

    async def run() -> None:
        async with connected(dsn) as reader:
            await reader.execute("set default_transaction_read_only = on")
            await requirements.require_package(reader)
            assert (await worker_health(reader, WORKER))["healthy"]
            for name in (
                "workers",
                "completeness/passes",
                "consumers",
                "attempt_summary",
                "ledger",
                "unsafe_routes",
                "blockers",
                "registered_types",
            ):
                await queries.rows(reader, name)
            assert [gate["open"] for gate in await gates.all_gates(reader)] == [True, False, False]
            await queries.rows(reader, "list_attempts", None, None, None, 10)
            await queries.rows(reader, "list_dead_letters", True, None, None, None, None, None, None, 10)
            assert (await letters.page(reader, letters.Filter(), resolved=False, before=None, limit=10)).total == 0
            assert await letters.kinds(reader) == []
            await queries.rows(reader, "delivery/routes")
            await queries.rows(reader, "list_routes", None)
            await queries.rows(reader, "retention/policies")
            await queries.rows(reader, "retention/plan", "1 second", None)
            await queries.rows(reader, "retention/readers")
            await queries.rows(reader, "completeness/missing", WORKER, 10)
            await completeness.counts(reader, WORKER)
            for view in (
                "v_iu_route_attempt_summary",
                "v_iu_event_backlog",
                "v_iu_route_dead_letter_open",
                "v_iu_worker_health",
            ):
                await reader.fetch(f"select * from {view}")
        async with connected(dsn) as reader:
            findings = await doctor.examine(reader, WORKER)
            denied = [f for f in findings if "permission denied" in f.found]
            assert not denied

    asyncio.run(run())


@pytest.mark.parametrize("group", [READER, OPERATOR])
def test_a_reader_sees_no_statement_of_others(applied: Database, roles: Logins, group: str) -> None:
    """Readers and operators cannot see statements of other sessions and the values in them, and doctor says so.

    Fails when: the group has pg_read_all_stats.
    """
    dsn = roles.add(group)

    async def run() -> None:
        async with connected(applied.dsn) as writer, connected(dsn) as reader:
            await writer.execute("select 'an IBAN'")
            seen = await reader.fetch("select query from pg_stat_activity where pid <> pg_backend_pid()")
            assert not any("IBAN" in (row["query"] or "") for row in seen)
            said = [finding.what for finding in await doctor.examine(reader, WORKER)]
            assert "other sessions" in said
            assert "open transactions" not in said

    asyncio.run(run())


def test_a_producer_writes_events_and_reads_none(applied: Database, roles: Logins) -> None:
    """A login in iu_listen_producer can emit and insert, gets the id, and can neither read nor change an event.

    Fails when: the emitter reads rows that the role may not read, or the role may read payloads.
    """
    execute(applied.dsn, PRODUCERS, PRODUCERS)
    dsn = roles.add("iu_listen_producer")

    async def run() -> None:
        async with connected(dsn) as producer:
            assert await producer.fetchval(
                "select fn_iu_emit_event('version_applied', 'unit/1', gen_random_uuid(), 'shop', '{}')"
            )
            assert await producer.fetchval(
                """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
                   values ('iu', 'version_applied', 'update', 'immediate') returning id"""
            )
            with pytest.raises(asyncpg.UndefinedObjectError):
                await producer.fetchval("select fn_iu_emit_event('nothing', 'unit/1', gen_random_uuid(), 'shop', '{}')")
            for statement in (
                "select safe_payload from event_outbox",
                "update event_outbox set event_domain = 'x'",
                "delete from event_outbox",
                "update dot_config set value = 'true'",
                "select * from iu_route_dead_letter",
                "insert into event_type_registry values ('iu', 'x', 'update', 'immediate')",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await producer.execute(statement)

    asyncio.run(run())


def test_what_a_reader_cannot_do(applied: Database, roles: Logins) -> None:
    """A reader cannot read payloads, run a batch, replay, or move a cursor."""
    dsn = roles.add(READER)
    statements = (
        "select safe_payload from event_outbox",
        "select event_snapshot from iu_route_dead_letter",
        "select * from information_unit",
        "select fn_iu_route_worker_run('iu_outbound_default', 1)",
        "select fn_iu_route_dead_letter_replay(gen_random_uuid())",
        "select fn_iu_completeness_page('iu_outbound_default')",
        "select fn_iu_completeness_repair('iu_outbound_default')",
        "update iu_completeness_missing set accepted_at = now()",
        "update dot_config set value = 'true'",
        "update iu_outbound_route set enabled = false",
        "update iu_route_worker_cursor set prev = '3:3:'",
        "delete from iu_consumer_heartbeat",
        (
            "insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key) "
            "values (gen_random_uuid(), 'outbound', 'x', 'sent', 'x')"
        ),
    )

    async def run() -> None:
        async with connected(dsn) as reader:
            assert [statement for statement in statements if not await refused(reader, statement)] == []

    asyncio.run(run())


def test_an_operator_opens_gates_switches_routes_replays_and_resets(applied: Database, roles: Logins) -> None:
    """A login role with only iu_listen_operator can run the CLI's statements for an operator."""
    dsn = roles.add(OPERATOR)

    async def run() -> None:
        async with connected(applied.dsn) as owner, connected(dsn) as operator:
            await owner.execute(POISON.format(prefix=PREFIX))
            await owner.execute(INSERT, poisonous(), "version_applied")
            await gates.set_gate(operator, "worker", opened=True)
            assert (await run_batch(owner))["dead_lettered"] == 1
            await owner.execute("drop trigger poison on iu_route_attempt")
            letter = (await queries.rows(operator, "list_dead_letters", False, None, None, None, None, None, None, 10))[
                0
            ]["id"]
            assert (await queries.rows(operator, "show_dead_letter", letter))[0]["event_snapshot"]
            answer = await dead_letters.replay(operator, letter, None)
            assert (answer["status"], answer["decision"]) == ("replayed", "dry_run")
            assert (await queries.rows(operator, "set_route", "iu.version_applied.workflow", False))[0][
                "enabled"
            ] is False
            assert await queries.value(operator, "reset_cursor", WORKER, "3:3:") == "3:3:"
            assert await queries.value(operator, "reset_cursor", WORKER, None)
            await owner.execute(LIVE_ROUTE)
            await routes.route_live(operator, "called", live=False, why="a test", actor=None)
            await routes.route_live(operator, "called", live=True, why="a test", actor=None)
            assert (await queries.rows(operator, "route_switches", "called"))[0]["live"]
            assert await operator.fetchval("select count(*) from iu_delivery_change where why = 'a test'") == 2
            assert (await retention.set_policy(operator, "events", "30 days"))["enabled"]
            await owner.execute("select fn_iu_trace_register('traces')")
            assert await traces.end(operator, "traces") == 0

    asyncio.run(run())


def test_an_operator_cancels_replays_and_resolves_many(applied: Database, roles: Logins) -> None:
    """A login role with only iu_listen_operator cancels deliveries, and replays and resolves dead letters, in parts.

    Fails when: deploy/postgres/roles.sql does not let the operator lock a lease, or execute one of these functions.
    """
    dsn = roles.add(OPERATOR)

    async def run() -> None:
        async with connected(applied.dsn) as owner, connected(dsn) as operator:
            await owner.execute(LIVE_ROUTE)
            await open_gate(applied.dsn)
            await owner.execute(
                "insert into iu_delivery_lease (worker_name, owner, seconds) values ($1, gen_random_uuid(), 9)", WORKER
            )
            for _ in range(3):
                await owner.execute(INSERT, uuid4(), "sent")
            await run_batch(owner)
            await routes.route_live(operator, "queued", live=False, why="a test", actor=None)
            found = await letters.cancel_plan(operator, "queued", None)
            parts = letters.cancel(operator, "queued", None, found["last_id"], "a test", None)
            assert [part async for part in parts] == [3]
            await routes.route_live(operator, "queued", live=True, why="a test", actor=None)
            which = letters.Filter(route="queued")
            planned = await letters.plan(operator, which)
            answers = [a async for a in letters.replay_all(operator, planned, which, None, "a test", None)]
            assert answers[0]["answers"] == {"queued": 3}
            await routes.route_live(operator, "queued", live=False, why="a test", actor=None)
            assert [part async for part in letters.cancel(operator, "queued", None, 9, "a test", None)] == [3]
            resolved = letters.resolve_all(operator, await letters.plan(operator, which), which, "a test", None)
            assert [part async for part in resolved] == [(3, 3)]
            assert await queries.rows(operator, "delivery/problems", "queued") == []

    asyncio.run(run())


def test_an_operator_audits_and_repairs(applied: Database, roles: Logins) -> None:
    """A login role with only iu_listen_operator finds a deleted attempt, has it routed again, and accepts another.

    Fails when: deploy/postgres/roles.sql does not let the operator draw new positions, or write the tables of the
    audit.
    """
    dsn = roles.add(OPERATOR)

    async def run() -> None:
        async with connected(applied.dsn) as owner, connected(dsn) as operator:
            await open_gate(applied.dsn)
            await owner.execute(INSERT, uuid4(), "version_applied")
            await run_batch(owner)
            await owner.execute("delete from iu_route_attempt")
            assert (await found(operator))["missing"] == 1
            assert await completeness.repair(operator, WORKER, 10) == {"restamped": 1, "accepted": 0, "more": False}
            assert (await run_batch(owner))["attempts_written"] == 1
            await completeness.confirm(operator, WORKER)
            assert (await completeness.counts(operator, WORKER))["missing"] == 0
            await owner.execute("delete from iu_route_attempt")
            assert (await found(operator))["missing"] == 1
            assert await queries.value(operator, "completeness/accept", WORKER) == 1
            assert (await found(operator))["missing"] == 0

    async def found(connection: asyncpg.Connection) -> dict[str, Any]:
        page = await completeness.page(connection, WORKER, 1000, 0)
        while not page.over:
            page = await completeness.page(connection, WORKER, 1000, page.number)
        return await completeness.counts(connection, WORKER)

    asyncio.run(run())


def test_what_an_operator_cannot_do(applied: Database, roles: Logins) -> None:
    """An operator cannot add a gate, change a target, change the audit, or make a route live by SQL."""
    dsn = roles.add(OPERATOR)
    statements = (
        "insert into dot_config (key, value) values ('x', 'true')",
        "update dot_config set key = 'x'",
        "delete from dot_config",
        "update iu_outbound_route set target_ref = 'elsewhere'",
        "insert into iu_outbound_route select * from iu_outbound_route",
        "update iu_route_attempt set status = 'sent'",
        "delete from iu_route_attempt",
        "delete from iu_route_dead_letter",
        "delete from event_outbox",
        "select fn_iu_retention_run('events')",
        "insert into iu_retention_policy (what, keep) values ('x', '1 day')",
        "update iu_retention_policy set total_gone = 0",
        "update iu_route_dead_letter set event_snapshot = '{}'",
        "update iu_route_worker_cursor set lineage = gen_random_uuid()",
        "select fn_iu_outbox_reanchor(p_plan => true)",
        "update event_outbox set event_domain = 'system'",
        (
            "insert into event_outbox (event_domain, event_type, event_stream, delivery_lane) "
            "values ('iu', 'version_applied', 'update', 'immediate')"
        ),
        "select fn_iu_route_worker_run('iu_outbound_default', 1)",
        "alter table iu_outbound_route disable trigger zz_iu_outbound_route_guard",
    )

    async def run() -> None:
        async with connected(dsn) as operator:
            assert [statement for statement in statements if not await refused(operator, statement)] == []
            with pytest.raises(asyncpg.CheckViolationError):
                await operator.execute("update iu_outbound_route set dry_run = false")

    asyncio.run(run())


async def nothing_to_spare(owner: asyncpg.Connection, role: str, work: Callable[[], Awaitable[None]]) -> None:
    """Assert that a role can do its work, and that it cannot without any single one of its privileges."""
    granted = [row["what"] for row in await owner.fetch(GRANTED, role)]
    assert len(granted) > 25
    spare = []
    for taken in [None, *granted]:
        transaction = owner.transaction()
        await transaction.start()
        try:
            if taken:
                await owner.execute(f"revoke {taken} from {role}")
            async with acting_as(owner, role):
                await work()
            if taken:
                spare.append(taken)
        except Exception as error:
            if taken is None or "permission denied" not in str(error):
                raise AssertionError(f"without {taken}") from error
        finally:
            await transaction.rollback()
    assert spare == []


# -- janitor -------------------------------------------------------------------------------------------------------


async def what_a_janitor_does(connection: asyncpg.Connection) -> None:
    """Run every statement of `iu-listen retention run`, in the transaction of the caller."""
    await requirements.require_primary(connection)
    await requirements.require_package(connection)
    await queries.rows(connection, "retention/policies")
    await queries.rows(connection, "retention/plan", None, None)
    await queries.rows(connection, "retention/readers")
    async with retention.only_run(connection) as other:
        assert other is None
    assert await retention.partitions(connection, "1 hour", 3) is None
    # The query with which a run on a partitioned outbox finds that partitions belong to the owner.
    assert await queries.rows(connection, "retention/partitions", "1 hour", None) == []
    for what in retention.WHAT:
        gone = [a["gone"] async for a in retention.batches(connection, what, None, 100, 0, 60)]
        assert gone == [1], (what, gone)


def test_the_janitor_role_has_nothing_to_spare(applied: Database, roles: Logins) -> None:
    """A janitor removes events, attempts and dead letters; without any single one of its privileges it cannot."""

    async def run() -> None:
        async with connected(applied.dsn) as owner:
            await open_gate(applied.dsn)
            await owner.execute(INSERT, uuid4(), "version_applied")
            assert (await run_batch(owner))["seen"] == 1
            await owner.execute(
                """delete from iu_route_attempt;
                   insert into iu_route_attempt (event_ref, route_kind, route_code, status, idempotency_key, created_at)
                   select e, 'outbound', 'x', 'skipped', 'outbound:x:' || e, 'epoch' from (select gen_random_uuid()) x(e);
                   insert into iu_route_dead_letter (worker_name, event_ref, route_code, idempotency_key, event_snapshot,
                                                     failure_code, resolved_at, resolution, attempt_no)
                   values ('x', gen_random_uuid(), 'x', 'x', '{}', 'x', 'epoch', 'x', 0);
                   update event_outbox set created_at = 'epoch';
                   update iu_retention_policy set enabled = true"""
            )
            await nothing_to_spare(owner, JANITOR, lambda: what_a_janitor_does(owner))

    asyncio.run(run())


def test_what_a_janitor_cannot_do(applied: Database, roles: Logins) -> None:
    """A janitor cannot set a policy, open a gate, move a cursor, route, or read a payload."""
    dsn = roles.add(JANITOR)
    statements = (
        "update iu_retention_policy set keep = '1 second'",
        "update iu_retention_policy set enabled = true",
        "update dot_config set value = 'true'",
        "select value from dot_config",
        "update iu_route_worker_cursor set prev = '3:3:'",
        "delete from iu_route_worker_cursor",
        "update event_outbox set created_at = 'epoch'",
        "update event_outbox set event_domain = 'iu'",
        "truncate event_outbox",
        "select safe_payload from event_outbox",
        "select event_snapshot from iu_route_dead_letter",
        "update iu_route_dead_letter set resolved_at = now()",
        "update iu_route_attempt set created_at = 'epoch'",
        "select fn_iu_route_worker_run('iu_outbound_default', 1)",
        "create or replace function fn_iu_retention_releasable(p_event_ref uuid) returns boolean language sql return true",
    )

    async def run() -> None:
        async with connected(dsn) as janitor:
            assert [statement for statement in statements if not await refused(janitor, statement)] == []

    asyncio.run(run())


# -- exporter ------------------------------------------------------------------------------------------------------


async def what_an_exporter_does(connection: asyncpg.Connection, settings: Settings) -> None:
    """Run every statement of the trace export, in the transaction of the caller."""
    await requirements.require_primary(connection)
    await requirements.require_package(connection)
    assert await TraceSession(connection, settings, "new").take_lease() is None
    source = TraceSession(connection, settings, "traces")
    assert await source.take_lease() is None
    place = await source.tick()
    assert place is not None
    page = await source.page(place, 100)
    assert [span.name.split()[0] for span in page.spans] == ["send", "process", "dead_letter"]
    await source.accepted(page, 0)
    again = await source.again(datetime(2000, 1, 1, tzinfo=UTC))
    assert len(await source.beyond(again)) == 1
    await source.alive()
    assert len((await source.page(again, 100)).spans) == 3


def test_the_exporter_role_has_nothing_to_spare(applied: Database, roles: Logins) -> None:
    """An exporter reads the data of spans and stores its position; without any one of its privileges it cannot."""

    async def run() -> None:
        async with connected(applied.dsn) as owner:
            await open_gate(applied.dsn)
            await owner.execute("select fn_iu_trace_register('traces')")
            await owner.execute(POISON.format(prefix=""))
            await owner.execute(INSERT, uuid4(), "version_applied")
            assert (await run_batch(owner))["dead_lettered"] == 1
            await owner.execute("alter table iu_route_attempt disable trigger poison")
            settings = Settings.load({}, {"dsn": applied.dsn})
            await nothing_to_spare(owner, EXPORTER, lambda: what_an_exporter_does(owner, settings))

    asyncio.run(run())


def test_what_an_exporter_cannot_do(applied: Database, roles: Logins) -> None:
    """An exporter cannot read a payload or change the audit, and has no other privilege."""
    dsn = roles.add(EXPORTER)
    statements = (
        "select safe_payload from event_outbox",
        "select event_snapshot from iu_route_dead_letter",
        "delete from iu_route_attempt",
        "delete from iu_trace_cursor",
        "update iu_trace_cursor set lineage = gen_random_uuid()",
        "update dot_config set value = 'true'",
        "update iu_route_worker_cursor set prev = '3:3:'",
        "select fn_iu_route_worker_run('iu_outbound_default', 1)",
    )

    async def run() -> None:
        async with connected(dsn) as exporter:
            assert [statement for statement in statements if not await refused(exporter, statement)] == []

    asyncio.run(run())


# -- other roles ---------------------------------------------------------------------------------------------------


def test_a_writer_needs_nothing_new(applied: Database, roles: Logins) -> None:
    """A role that could insert events before the package still can: stamp and bell need no EXECUTE privilege."""
    dsn = roles.add()
    execute(
        applied.dsn,
        f"grant usage on schema public to {roles.names[0]}; grant insert on event_outbox to {roles.names[0]};"
        f"grant select on event_type_registry to {roles.names[0]}",
    )

    async def run() -> None:
        event, heard = uuid4(), asyncio.Event()
        async with connected(applied.dsn) as sleeper, connected(dsn) as writer:
            # An idle consumer listens, and holds the lock of the bell.
            await sleeper.add_listener(CHANNEL, lambda *_: heard.set())
            await sleeper.execute("select pg_advisory_lock($1, 1)", BELL_KEY)
            await writer.execute(INSERT, event, "version_applied")
            async with asyncio.timeout(15):
                await heard.wait()
            assert await sleeper.fetchval(
                "select event_seq > 0 and xact_id > '3' from event_outbox where id = $1", event
            )

    asyncio.run(run())


def test_public_cannot_call_the_worker(applied: Database, roles: Logins) -> None:
    """A role without EXECUTE cannot run, replay or deliver, even with all privileges on the tables."""
    dsn = roles.add()
    execute(
        applied.dsn,
        f"grant usage on schema public to {roles.names[0]}",
        f"grant all on all tables in schema public to {roles.names[0]}",
        # The default of PostgreSQL, which roles.sql revokes.
        "grant execute on all functions in schema public to public",
        ROLES,
    )
    statements = (
        "select fn_iu_route_worker_run('iu_outbound_default', 1)",
        "select fn_iu_route_dead_letter_replay(gen_random_uuid())",
        "select fn_iu_route_deliver('x', gen_random_uuid(), '{}')",
        "select fn_iu_route_worker_health('iu_outbound_default')",
        "select fn_iu_outbox_tick()",
        "select fn_iu_completeness_page('iu_outbound_default')",
        "select fn_iu_completeness_confirm('iu_outbound_default')",
        "select fn_iu_completeness_repair('iu_outbound_default')",
    )

    async def run() -> None:
        async with connected(dsn) as stranger:
            assert [statement for statement in statements if not await refused(stranger, statement)] == []

    asyncio.run(run())


def test_the_file_may_be_run_again_and_takes_back_what_it_does_not_give(applied: Database, roles: Logins) -> None:
    """A second run changes nothing, except that it revokes a privilege that was granted by hand."""

    async def run() -> None:
        async with connected(applied.dsn) as owner:

            async def grants() -> list[str]:
                return [f"{role}: {row['what']}" for role in GROUPS for row in await owner.fetch(GRANTED, role)]

            before = await grants()
            await owner.execute(
                f"grant delete on iu_route_attempt to {CONSUMER}; grant update (lineage) on iu_route_worker_cursor to {OPERATOR}"
            )
            assert await grants() != before
            await owner.execute(ROLES)
            assert await grants() == before

    asyncio.run(run())


def test_the_group_roles_own_nothing_and_cannot_log_in(applied: Database, roles: Logins) -> None:
    """The group roles have no login, no attribute and no object, and roles.sql covers every object of the package."""

    async def run() -> None:
        async with connected(applied.dsn) as owner:
            for role in GROUPS:
                attributes = await owner.fetchrow(
                    "select rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication "
                    "from pg_roles where rolname = $1", role,
                )  # fmt: skip
                assert not any(attributes.values()), role
                assert not await owner.fetchval(
                    "select count(*) from pg_shdepend where refobjid = $1::regrole and deptype = 'o'", role
                )
            package = await migrate.package_state(owner)
            # A new table, view or function of the package must be considered in roles.sql.
            unknown = [
                o.name for o in package.objects
                if o.kind in ("table", "view", "sequence", "function") and o.name.partition("(")[0] not in ROLES
                and o.name not in ("fn_iu_outbox_stamp()", "fn_iu_ring_bell()", "fn_iu_outbox_retired()",
                                   "fn_iu_outbound_route_guard()", "fn_iu_delivery_list_guard()")
            ]  # fmt: skip
            assert unknown == []

    asyncio.run(run())


def test_a_reader_may_verify(applied: Database, roles: Logins) -> None:
    """A reader can run all checks from W1 on, except the one that calls the delivery seam."""
    dsn = roles.add(READER, OPERATOR)

    async def run() -> None:
        async with connected(dsn) as operator:
            wrong = [check for check in await verify.verify(operator) if not check.passed]
            assert wrong == []

    asyncio.run(run())


def test_the_application_may_do_what_it_may_in_its_own_tables(applied: Database, roles: Logins) -> None:
    """After roles.sql, IU Core's application can still change its routes and settings.

    Fails when: a function that a guard calls with the privileges of the application is revoked from public.
    """
    app = roles.add()
    execute(
        applied.dsn,
        f"grant usage on schema public to {roles.names[0]};"
        f"grant select, insert, update, delete on iu_outbound_route, dot_config to {roles.names[0]}",
    )
    execute(
        app,
        "update iu_outbound_route set enabled = not enabled",
        """update iu_outbound_route set delivery_policy = '{"attempts": 3}'""",
        "update dot_config set value = value",
        "insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref)"
        " values ('new', 'iu', 'version_applied', 'update', 'workflow', 'x')",
        "delete from iu_outbound_route where route_code = 'new'",
        "insert into dot_config (key, value) values ('mine', 'x')",
        "update dot_config set value = 'new' where key = 'iu_core.delivery_live_routes'",
        "delete from dot_config where key = 'mine'",
    )
    with pytest.raises(asyncpg.CheckViolationError, match="there is no attemps"):
        execute(app, """update iu_outbound_route set delivery_policy = '{"attemps": 3}'""")
