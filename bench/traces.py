"""Export of a backlog of attempts to a receiver that only counts, compared with the SDK's exporter for as many spans.

Measured are spans a second of wall time and of processor time of the exporting process, and its largest memory. Then
routing with and without the export: the drain rate, and the latency of single events.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection

import asyncpg

from common import EMIT, command, consumer, database, listening, percentile, spread

SDK = """
import sys, time
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanKind
exporter = OTLPSpanExporter()
tracer = TracerProvider().get_tracer("bench")
spans = int(sys.argv[1])
keys = ["messaging.system", "messaging.operation.name", "messaging.operation.type", "messaging.destination.name",
        "messaging.message.id", "iu.event.domain", "iu.event.type", "iu.event.subject", "iu.route.code", "iu.route.kind",
        "iu.attempt.status", "iu.attempt.decision", "iu.idempotency_key"]
began, used = time.perf_counter(), time.process_time()
for _ in range(spans // 500):
    page = []
    for n in range(500):
        span = tracer.start_span("process event_outbox", kind=SpanKind.CONSUMER, attributes={k: f"{k} {n}" for k in keys})
        span.end()
        page.append(span)
    assert exporter.export(page) is SpanExportResult.SUCCESS
print(spans / (time.perf_counter() - began), spans / (time.process_time() - used))
"""


def count(pipe: Connection) -> None:
    """The receiver: reads requests, and keeps nothing."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_port)
    server.serve_forever()


def timed(command: list[str], environ: dict[str, str]) -> tuple[str, float, float, float]:
    """Run a command; return its output, wall seconds, processor seconds, and its largest memory in MB."""
    began = time.perf_counter()
    done = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    said = done.stdout.read()
    _, _, used = os.wait4(done.pid, 0)
    return said, time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


async def backlog(dsn: str, attempts: int) -> None:
    """Write so many attempts that are not exported yet."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate event_outbox, iu_route_attempt, iu_trace_cursor")
    await connection.execute("select fn_iu_trace_register('traces')")
    for done in range(0, attempts, 100_000):
        await connection.fetchval(EMIT, min(100_000, attempts - done))
    while json.loads(await connection.fetchval("select fn_iu_route_worker_run('iu_outbound_default', 5000)::text"))[
        "seen"
    ]:
        pass
    await connection.execute("vacuum analyze event_outbox, iu_route_attempt")
    await connection.close()


async def paced(connection: asyncpg.Connection, times: int, burst: int) -> tuple[float, float]:
    """p50 and p99 in ms, from commit to attempt, of so many events every 10 ms."""
    for _ in range(times):
        await connection.fetchval(EMIT, burst)
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    waits = await connection.fetch(
        """select extract(epoch from a.finished_at - pg_xact_commit_timestamp(o.xact_id::xid)) * 1000 as ms
             from iu_route_attempt a join event_outbox o on o.id = a.event_ref order by a.id desc limit $1""",
        times * burst,
    )
    ms = [float(row["ms"]) for row in waits]
    return percentile(ms, 0.5), percentile(ms, 0.99)


async def routing(dsn: str, events: int, times: int, export: bool, alone: bool) -> tuple[float, ...]:
    """Events a second out of a backlog; then p50 and p99 of 100 events a second, and of 2 000."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate event_outbox, iu_route_attempt, iu_consumer_heartbeat")
    await connection.fetchval(EMIT, events)
    await connection.execute("vacuum analyze event_outbox")
    await connection.execute("checkpoint")
    if export and not alone:
        os.environ["OTEL_TRACES_EXPORTER"] = "otlp"
    else:
        os.environ.pop("OTEL_TRACES_EXPORTER", None)
    apart = command("trace-export", dsn, "--follow") if export and alone else contextlib.nullcontext()
    with apart, consumer(dsn):
        while await connection.fetchval("select count(*) from iu_route_attempt") < events:
            await asyncio.sleep(0.05)
        rate = await connection.fetchval(
            "select count(*) / extract(epoch from max(finished_at) - min(created_at)) from iu_route_attempt"
        )
        while (
            export
            and json.loads(await connection.fetchval("select fn_iu_trace_tick('traces')::text"))["status"] != "idle"
        ):
            await asyncio.sleep(0.1)
        await listening(connection)
        await asyncio.sleep(1)
        figures = (float(rate), *await paced(connection, times, 1), *await paced(connection, times, 20))
    await connection.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attempts", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=1000, help="number of bursts, 10 ms apart")
    parser.add_argument(
        "--apart", action="store_true", help="measure routing beside an export that runs in a separate process"
    )
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    receiver = multiprocessing.Process(target=count, args=(there,), daemon=True)
    receiver.start()
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{here.recv()}"
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "IU_LISTEN_"))}
    ours: list[tuple[float, float, float]] = []
    sdk: list[tuple[float, float]] = []
    with database() as server:
        dsn = server.dsn("iu")
        for _ in range(options.rounds):
            asyncio.run(backlog(dsn, options.attempts))
            command = [sys.executable, "-m", "iu_listen", "trace-export", "--dsn", dsn, "--json"]
            said, _, used, memory = timed(command, environ)
            answer = json.loads(said)
            assert answer["exported"] == 2 * options.attempts, answer
            ours.append((answer["exported"] / answer["seconds"], answer["exported"] / used, memory))
            said, *_ = timed([sys.executable, "-c", SDK, str(min(options.attempts, 50_000))], environ)
            wall, cpu = map(float, said.split())
            sdk.append((wall, cpu))
        found: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
        for n in range(options.rounds):
            # The order alternates, so that a machine that becomes slower affects both equally.
            for export in (n % 2 == 1, n % 2 == 0):
                figures = routing(dsn, options.attempts, options.times, export=export, alone=options.apart)
                found[export].append(asyncio.run(figures))
    print(f"trace-export        {spread([o[0] for o in ours])} spans/s")
    print(f"  per core          {spread([o[1] for o in ours])} spans/s of processor time, including the start")
    print(f"  largest memory    {spread([o[2] for o in ours])} MB")
    print(f"the SDK's exporter  {spread([s[0] for s in sdk])} spans/s")
    print(f"  per core          {spread([s[1] for s in sdk])} spans/s of processor time")
    print(
        f"ratio of medians, per core: {statistics.median(o[1] for o in ours) / statistics.median(s[1] for s in sdk):.1f}"
    )
    names = ("drain, events/s", "100 a second, p50 in ms", "p99", "2 000 a second, p50 in ms", "p99")
    for column, name in enumerate(names):
        without, beside = (statistics.median(f[column] for f in found[export]) for export in (False, True))
        # The ratio is taken in each round, because the speed of the machine differs between rounds.
        ratio = statistics.median(on[column] / off[column] for off, on in zip(*found.values(), strict=True))
        print(f"{name}: {without:,.2f} without the export, {beside:,.2f} with it, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
