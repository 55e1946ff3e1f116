"""Helpers of the tests: a consumer in the test's own process, events, and waiting for an observation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg

from iu_listen.app import PostgresSessions
from iu_listen.flow.consumer import ConsumerLoop
from iu_listen.install import migrate
from iu_listen.install.package import missing_base_objects, package_state
from iu_listen.model.observation import BatchRan, Listening, Observation, Stopped
from iu_listen.model.settings import Settings
from iu_listen.postgres.session import Connection, session
from iu_listen.postgres.sqlfiles import base_files

WORKER = "iu_outbound_default"

#: The backlog of a worker twice: as the view counts it, and as health finds it, which reads a bounded number of rows.
BACKLOGS = """
    select b.backlog, (fn_iu_route_worker_health(b.worker_name) ->> 'backlog')::bigint as of_health
      from v_iu_event_backlog b where b.worker_name = $1
"""


async def connect(dsn: str) -> asyncpg.Connection:
    """A plain session, which the caller has to close."""
    return await asyncpg.connect(dsn)


async def apply_partitioned_base(connection: asyncpg.Connection) -> None:
    """Create IU Core with an event_outbox that is partitioned by month: four past months and the current one."""
    for migration in base_files():
        text = migration.text()
        if migration.number == "002":
            head, _, rest = text.partition("constraint event_outbox_pkey primary key (id),")
            text = head + "constraint event_outbox_pkey primary key (id, created_at)," + rest.replace(
                "\n);\n", "\n) partition by range (created_at);\n", 1
            )  # fmt: skip
        await connection.execute(text)
    await connection.execute("""
        do $$
        declare v_from timestamptz;
        begin
            for n in -4 .. 0 loop
                v_from := date_trunc('month', now(), 'UTC') + n * interval '1 month';
                execute format('create table public.event_outbox_%s partition of public.event_outbox '
                               'for values from (%L) to (%L)',
                               to_char(v_from at time zone 'UTC', '"y"YYYY"m"MM'), v_from, v_from + interval '1 month');
            end loop;
        end $$
    """)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A plain session for the length of a block."""
    connection = await asyncpg.connect(dsn, connection_class=Connection)
    try:
        yield connection
    finally:
        connection.terminate()


async def apply_package(dsn: str) -> None:
    """Apply the whole package, and IU Core if it is missing; open the worker gate."""
    async with session(dsn, name="tests") as connection:
        if await missing_base_objects(connection):
            await migrate.apply_base(connection)
        await migrate.apply_files(connection, (await package_state(connection)).pending, {}, lambda _: None)
    await open_gate(dsn)


async def open_gate(dsn: str, value: str = "true") -> None:
    """Set the worker gate."""
    async with connected(dsn) as connection:
        await connection.execute(
            "update dot_config set value = $1, updated_at = now() where key = 'iu_core.route_worker_enabled'", value
        )


#: Appends $1 events in one statement.
MANY = """
    insert into public.event_outbox (event_domain, event_type, event_stream, delivery_lane)
    select 'iu', 'version_applied', 'update', 'immediate' from generate_series(1, $1::int)
"""


async def rows_read(connection: asyncpg.Connection, tables: str) -> int:
    """The number of rows of these tables (a regular expression) that were read so far, by index or sequential scans."""
    await connection.fetchval("select pg_stat_force_next_flush()")
    read: int = await connection.fetchval(
        """select (select coalesce(sum(i.idx_tup_read), 0) from pg_stat_user_indexes i where i.relname ~ $1)::bigint
                + (select coalesce(sum(t.seq_tup_read), 0) from pg_stat_user_tables t where t.relname ~ $1)::bigint""",
        tables,
    )
    return read


async def insert_event(connection: asyncpg.Connection, subject: UUID | None = None, note: str = "") -> UUID:
    """Append one event to the outbox with plain SQL, in the current transaction of the connection."""
    event: UUID = await connection.fetchval(
        """insert into public.event_outbox
               (event_domain, event_type, event_stream, delivery_lane, event_subject_ref, safe_payload)
           values ('iu', 'version_applied', 'update', 'immediate', $1, jsonb_build_object('note', $2::text))
           returning id""",
        subject or uuid4(),
        note,
    )
    return event


async def run_batch(connection: asyncpg.Connection, limit: int = 1000, worker: str = WORKER) -> dict[str, Any]:
    """Run one batch of the worker; return its answer."""
    answer: dict[str, Any] = json.loads(
        await connection.fetchval("select fn_iu_route_worker_run($1, $2)::text", worker, limit)
    )
    return answer


async def drain(connection: asyncpg.Connection, limit: int = 1000, worker: str = WORKER) -> int:
    """Run batches of the worker until there is no more; return the number of events seen."""
    seen = 0
    for _ in range(10_000):
        answer = await run_batch(connection, limit, worker)
        assert answer["status"] == "ran", answer
        seen += answer["seen"]
        if not answer["more"]:
            return seen
    raise AssertionError(f"after 10 000 runs and {seen} events there is still more")


async def attempted(connection: asyncpg.Connection) -> list[UUID]:
    """The events of all attempts, in the order of the audit."""
    return [row["event_ref"] for row in await connection.fetch("select event_ref from iu_route_attempt order by id")]


class Recorder:
    """An observer that records observations and can be waited for."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []
        self._changed = asyncio.Event()

    def observe(self, observation: Observation, /) -> None:
        self.seen.append(observation)
        self._changed.set()

    def of(self, kind: type) -> list[Any]:
        """All observations of a kind so far."""
        return [o for o in self.seen if isinstance(o, kind)]

    async def wait_for(self, kind: type, fits: Callable[[Any], bool] = lambda _: True, timeout: float = 15) -> Any:
        """Wait until an observation of this kind fits, and return it."""
        with anyio.fail_after(timeout):
            while True:
                for observation in self.of(kind):
                    if fits(observation):
                        return observation
                self._changed.clear()
                await self._changed.wait()


async def wait_until(condition: Callable[[], Awaitable[Any]], what: str, timeout: float = 15) -> Any:
    """Evaluate a condition every 5 ms until it is true, and return its value. After the
    timeout, raise AssertionError."""
    try:
        with anyio.fail_after(timeout):
            while not (answer := await condition()):
                await anyio.sleep(0.005)
            return answer
    except TimeoutError:
        raise AssertionError(f"not true within {timeout} s: {what}") from None


@asynccontextmanager
async def consuming(
    dsn: str,
    *,
    listening: bool = True,
    recorder: Recorder | None = None,
    waits_for: type[Observation] | None = None,
    **settings: Any,
) -> AsyncIterator[Recorder]:
    """A consumer in this process, for the length of a block; yields its recorder, once it listens."""
    recorder = recorder or Recorder()
    loaded = Settings.load({}, {"dsn": dsn, **settings})
    consumer = ConsumerLoop(loaded, PostgresSessions(loaded), recorder)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        try:
            await recorder.wait_for(waits_for or (Listening if listening else BatchRan))
            yield recorder
        finally:
            consumer.stop("end of test")
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                while not recorder.of(Stopped):
                    await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
