"""Helpers: an export in this process, a burst of events, and whether the receiver has all spans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import asyncpg

from iu_listen.app import PostgresSessions
from iu_listen.flow.trace_export import TraceExport
from iu_listen.model.settings import Settings
from iu_listen.telemetry.otlp.factory import create_collector
from support import Recorder, drain, insert_event, wait_until
from telemetry.receiver import Dripping, GrpcReceiver, Receiver


async def begin(dsn: str) -> None:
    """Register the trace cursor, so that the export begins now."""
    async with PostgresSessions(Settings.load({}, {"dsn": dsn})).trace_source() as source:
        assert await source.take_lease() is None


@asynccontextmanager
async def exporting(
    dsn: str, receiver: Receiver | Dripping, session_timeout: float = 15, **environ: str
) -> AsyncIterator[Recorder]:
    """Run an export in this process for the length of a block."""
    recorder = Recorder()
    variables = {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "500",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc" if isinstance(receiver, GrpcReceiver) else "http/protobuf",
    }
    there = create_collector(variables | environ)
    assert there is not None
    exporter = TraceExport(
        PostgresSessions(
            Settings.load({}, {"dsn": dsn, "session_timeout": session_timeout, "catch_up": session_timeout / 2})
        ),
        there,
        recorder,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exporter.run)
        yield recorder
        tasks.cancel_scope.cancel()
    there.close()


async def rows(connection: asyncpg.Connection) -> set[str]:
    """Span ids of all attempts, of their calls, and of all dead letters."""
    found = await connection.fetch("""select span_id from v_iu_route_attempt
                                      union all
                                      select call_span_id from v_iu_route_attempt where call_span_id is not null
                                      union all select fn_iu_span_id('dead_letter', id::text) from iu_route_dead_letter""")
    return {row["span_id"] for row in found}


async def all_there(connection: asyncpg.Connection, receiver: Receiver, timeout: float = 30) -> None:
    """Wait until the receiver has the spans of all rows, and no other spans except those of events."""

    async def same() -> bool:
        return {key for key, span in receiver.spans.items() if not span.name.startswith("send ")} == await rows(
            connection
        )

    await wait_until(same, "every row is a span at the receiver", timeout)


async def burst(connection: asyncpg.Connection, events: int) -> None:
    """Route events, one in twenty of them poison, and replay half of the dead letters, of which half fail again."""
    async with connection.transaction():
        for number in range(events):
            await insert_event(connection, note="poison 22000" if number % 20 == 0 else "")
    await drain(connection, 100)
    letters = await connection.fetch("select id from iu_route_dead_letter where resolved_at is null order by id")
    for number, letter in enumerate(letters[::2]):
        if number == len(letters) // 4:
            await connection.execute("alter table iu_route_attempt disable trigger test_poison")
        await connection.fetchval("select fn_iu_route_dead_letter_replay($1)", letter["id"])
    await connection.execute("alter table iu_route_attempt enable trigger test_poison")


async def idle(connection: asyncpg.Connection) -> bool:
    return await connection.fetchval("select fn_iu_trace_tick('traces') ->> 'status'") == "idle"
