"""Bursts of events while the trace receiver or the consumer fails: at the end, the spans are exactly those of the rows.

The consumer is the real command, and the receiver a separate process. Events, dead letters and replays continue during
the fault.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from cli.command import Running, run
from soak.backend import backend
from soak.faults import PRODUCERS, Participants, Producers, inject, query_after_pause
from support import connected, wait_until

#: One event in fifty cannot be recorded as dry run; one in three of these always fails, the others are replayed.
POISON: Final = """
    create function poison() returns trigger language plpgsql as $$
    begin
        if new.status = 'dry_run' and (new.attempt_no = 1 or hashtext(new.event_ref::text) % 3 = 0) and exists (
            select from public.event_outbox o where o.id = new.event_ref and o.canonical_address = 'poison') then
            raise exception 'poisoned';
        end if;
        return new;
    end $$;
    create trigger poison before insert on iu_route_attempt for each row execute function poison();
"""
REPLAY: Final = """
    select fn_iu_route_dead_letter_replay(d.id)
      from (select d.id from iu_route_dead_letter d where d.resolved_at is null and d.replay_count = 0 limit 50) d
"""
SPANS: Final = """
    select span_id from v_iu_route_attempt
    union all select call_span_id from v_iu_route_attempt where call_span_id is not null
    union all select fn_iu_span_id('dead_letter', id::text) from iu_route_dead_letter
"""
SOME_EXPORTED: Final = "select exported > $1 from iu_trace_cursor"
ALL_REPLAYED: Final = "select not exists (select from iu_route_dead_letter where replay_count = 0)"
EXPORT_IDLE: Final = "select fn_iu_trace_tick('traces') ->> 'status' = 'idle'"


@dataclass(frozen=True)
class Verdict:
    """The result of one burst.

    Attributes:
        fault: The name of the fault.
        rows: Number of attempts and dead letters.
        delayed: Number of rows that the receiver lacked when the fault ended; with several faults, the largest.
        missing: Number of rows that the receiver does not have.
        invented: Number of spans of attempts and dead letters that do not exist.
        repeated: Number of repeated spans.
        dead_letters: Number of dead letters.
        replays: Number of attempts after the first.
        seconds: Duration of the burst.
    """

    fault: str
    rows: int
    delayed: int
    missing: int
    invented: int
    repeated: int
    dead_letters: int
    replays: int
    seconds: float


async def _replay(dsn: str) -> None:
    async with connected(dsn) as operator:
        while True:
            await operator.execute(REPLAY)
            await asyncio.sleep(0.1)


async def soak(
    dsn: str, fault: str, *, events: int, seconds: float, kills: int = 10, protocol: str = "http/protobuf"
) -> Verdict:
    """Run one burst: half of it before the fault, half during the fault.

    Args:
        dsn: A database with the package applied and the gate open; no consumer may run there.
        fault: One of FAULTS.
        events: Number of events.
        seconds: Shortest duration of the fault.
        kills: Number of kills, if the fault is a kill.
        protocol: ``http/protobuf`` or ``grpc``.

    Raises:
        AssertionError: the fault had no effect: the receiver lacked nothing when it ended.
    """
    began = time.monotonic()
    with backend(protocol) as receiver:
        environ = {
            "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "IU_LISTEN_SESSION_TIMEOUT": "6",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2000", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }  # fmt: skip
        assert run("trace-export", dsn=dsn, env=environ).code == 0

        def start_consumer() -> Running:
            return Running("run", dsn=dsn, env=environ)

        async with connected(dsn) as connection:
            await connection.execute(POISON)
            participants = Participants(receiver, start_consumer, start_consumer(), Producers(), connection)
            try:
                async with asyncio.TaskGroup() as tasks:
                    running = [tasks.create_task(participants.producers.write(dsn)) for _ in range(PRODUCERS)]
                    running.append(tasks.create_task(_replay(dsn)))
                    await participants.producers.allow(events // 2)
                    await wait_until(
                        lambda: query_after_pause(connection, SOME_EXPORTED, events // 10),
                        "the first spans are exported",
                        600,
                    )
                    await inject(fault, participants, events - events // 2, seconds, kills)
                    await participants.wait_until_routed()
                    await wait_until(
                        lambda: query_after_pause(connection, ALL_REPLAYED), "every dead letter is replayed", 600
                    )
                    for task in running:
                        task.cancel()
                await wait_until(lambda: query_after_pause(connection, EXPORT_IDLE), "all spans are exported", 1800)
                assert participants.consumer.end(timeout=60) == 0
            finally:
                participants.consumer.close()
            expected = {row[0] for row in await connection.fetch(SPANS)}
            dead_letters = await connection.fetchval("select count(*) from iu_route_dead_letter")
            replays = await connection.fetchval("select count(*) from iu_route_attempt where attempt_no > 1")
        accepted, found = receiver.accepted(), receiver.rows()
    return Verdict(
        fault, len(expected), participants.delayed, len(expected - found), len(found - expected),
        len(accepted) - len({span for span, _ in accepted}), dead_letters, replays, time.monotonic() - began,
    )  # fmt: skip
