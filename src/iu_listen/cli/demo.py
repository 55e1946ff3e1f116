"""The command demo: show the main functions, from an empty database to a summary with measurements."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Final
from uuid import UUID

import anyio
import anyio.abc
from cyclopts import App, Parameter
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from iu_listen.admin import dead_letters, gates, routes, traces
from iu_listen.admin.health import worker_health
from iu_listen.cli import output, waterfall
from iu_listen.cli.context import CommandContext, open_context, with_dsn
from iu_listen.cli.demo_target import RECEIVER_PORT_VARIABLE, Receiver
from iu_listen.cli.install import applied, print_proof
from iu_listen.cli.parameters import in_range
from iu_listen.install.preflight import ApplyOptions
from iu_listen.install.probe import run_probe
from iu_listen.model.errors import Refused
from iu_listen.model.routing import DEFAULT_WORKER
from iu_listen.model.text import MAX_COUNT
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection
from iu_listen.postgres.sqlfiles import query

DEMO_DATABASE: Final = "iu_demo"
#: Longest duration of a step of the demo, in seconds; after it the demo fails.
STEP_TIMEOUT: Final = 60.0
BURST_WRITERS: Final = 4
#: The live route, and the subjects of its events: the receiver accepts the first one, accepts the second one at the
#: second attempt, and rejects the third one.
DEMO_ROUTE: Final = "demo.crm"
DEMO_SUBJECTS: Final = ("customer", "customer-busy", "customer-unknown")


def register(app: App) -> None:
    """Add this command."""
    app.command(demo)


def demo(
    *,
    burst: Annotated[int, Parameter(help="Number of events in the burst.", validator=in_range(1, 10_000_000))] = 20_000,
) -> int:
    """Show the main functions on the embedded server, with measurements.

    The demo applies the package, runs the probe, routes events, works through a backlog, delivers, fails, replays,
    kills a consumer and catches up. It creates a separate database, iu_demo, each time, and ends by itself.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    os.environ.pop("IU_LISTEN_DSN", None)
    for name in set(os.environ) - set(environ):
        del os.environ[name]
    with open_context(None, create=True) as context:
        return anyio.run(_Demo(context, burst).run)


@dataclass
class _Demo:
    """The steps of the demo, and the figures that they measure."""

    context: CommandContext
    burst: int
    figures: list[tuple[str, str]] = field(default_factory=list)
    receiver: Receiver = field(default_factory=Receiver)
    tasks: anyio.abc.TaskGroup = field(init=False)
    _step: int = 0

    async def run(self) -> int:
        async with self.context.session("iu-listen demo") as only:
            if not await queries.value(only, "demo/lock"):
                raise Refused(
                    "another demo is running on this embedded server",
                    "Wait until it ends, or set IU_LISTEN_DATA_DIR to another directory.",
                )
            return await self._whole()

    async def _whole(self) -> int:
        await self._fresh_database()
        async with anyio.create_task_group() as self.tasks, self.context.session("iu-listen demo") as connection:
            await self.tasks.start(self.receiver.serve)
            await self._apply_and_prove(connection)
            with self._consumer() as consumer:
                await self._wait(lambda: self._listens(connection), "the consumer listens", pause=0.02)
                await self._business(connection)
                await self._burst(connection)
                await self._deliver(connection)
                await self._die(connection, consumer)
            with self._consumer():
                await self._catch_up(connection)
            await self._end(connection)
            self.receiver.close()
        return 0

    # -- steps ---------------------------------------------------------------------------------------------------

    async def _fresh_database(self) -> None:
        began = time.perf_counter()
        self._title("An embedded PostgreSQL server, and an empty database")
        async with self.context.session() as connection:
            for statement in query("demo/fresh_database").split(";"):
                await connection.execute(statement)
            version = await connection.fetchval("show server_version")
        assert self.context.server is not None
        self.context = replace(
            self.context, settings=with_dsn(self.context.settings, self.context.server.dsn(DEMO_DATABASE))
        )
        output.line(f"PostgreSQL {version} in {self.context.settings.data_dir}/, database {DEMO_DATABASE}")
        self._figure("database ready", f"{time.perf_counter() - began:.2f} s")

    async def _apply_and_prove(self, connection: Connection) -> None:
        self._title("The base, then the package with its preflight checks, then the W checks")
        began = time.perf_counter()
        settings = self.context.settings
        terms = ApplyOptions(
            dsn=settings.dsn, no_backup="demo database, empty", programs=self.context.programs, base="iu_core"
        )
        answer = await applied(self.context, connection, terms, quiet=True)
        shut = [f"{g['name']}: {g['evidence']}" for g in answer["gates"] if not g["pass"]]
        wrong = [c["id"] for c in answer.get("verify", []) if not c["pass"]]
        if not answer["pass"]:
            raise Refused(f"the demo database could not be set up: {'; '.join(shut + wrong)}")
        for gate in answer["gates"]:
            output.line(f"{output.mark(True, 'PASS')}  {gate['number']} {gate['name']}", markup=True)
        output.line(f"{len(answer['applied'])} files applied; {len(answer['verify'])} checks pass")
        self._figure("package applied and verified", f"{time.perf_counter() - began:.2f} s")
        self._title("The probe, A to H, on the installed package; rolled back")
        proof = await run_probe(connection, self.context.session)
        for finding in proof.probes:
            output.line(f"{output.mark(finding.passed, 'PASS', 'FAIL')}  {escape(finding.scenario)}", markup=True)
        if not proof.passed:
            print_proof(proof)
            raise Refused("the probe found a wrong figure")
        await gates.set_gate(connection, "worker", opened=True)

    async def _business(self, connection: Connection) -> None:
        self._title("Single events: each new version of a unit is an event")
        ways, total = [], []
        for number in range(1, 11):
            unit = await connection.fetchval(query("demo/new_unit"), f"demo/unit-{number:02}")
            began = time.time()
            version = await connection.fetchval(query("demo/new_version"), unit)
            written = time.time()
            way = await self._wait(
                partial(connection.fetchrow, query("demo/way_of_version"), version), "it is routed", pause=0.005
            )
            # The time of the decision is read from the database, whose host has the same clock. Polling for the
            # decision would change the measured latency.
            decided = way["decided_at"] - began
            total.append(1000 * decided)
            if number <= 5:
                ways.append((way["canonical_address"], str(way["id"]), f"{1000 * (written - began):.2f} ms",
                             f"{1000 * decided:.2f} ms", way["status"]))  # fmt: skip
            await anyio.sleep(0.03)
        columns = ("unit", "event", "committed after", "routed after", "decision")
        output.table(columns, ways, spare=("event",))
        self._figure("insert → routed, median of 10", f"{sorted(total)[len(total) // 2]:.2f} ms")

    async def _burst(self, connection: Connection) -> None:
        self._title(f"A burst of {output.text(self.burst)} events from {BURST_WRITERS} producers")
        units = [await connection.fetchval(query("demo/new_unit"), f"demo/burst-{n:02}") for n in range(20)]
        before = (await self._count(connection))["attempted"]
        expected = (await self._count(connection))["events"] + self.burst
        began = time.perf_counter()

        async def write(mine: list[UUID], count: int) -> None:
            chunk = max(1, count // 20)
            async with self.context.session("iu-listen demo writer") as writer:
                for number, first in enumerate(range(0, count, chunk)):
                    some = min(chunk, count - first)
                    await writer.execute(query("demo/new_versions"), [mine[number % len(mine)]], some)

        async with anyio.create_task_group() as tasks:
            for n in range(BURST_WRITERS):
                tasks.start_soon(write, units[n::BURST_WRITERS], len(range(n, self.burst, BURST_WRITERS)))
            async with _bar("routing", self.burst) as advance:
                await self._drained(connection, expected, lambda done: advance(done - before))
        seconds = time.perf_counter() - began
        output.line(f"{output.text(self.burst)} events written and routed in {seconds:.2f} s")
        self._figure("burst, written and routed", f"{output.text(round(self.burst / seconds))} events/s")

    async def _deliver(self, connection: Connection) -> None:
        self._title("A live route: a coroutine delivers to a receiver; a failure, a retry, a dead letter")
        await connection.execute(query("demo/live_route"))
        await gates.set_gate(connection, "delivery", opened=True)
        await routes.route_live(connection, DEMO_ROUTE, live=True, why="the demo", actor="demo")
        units = [await connection.fetchval(query("demo/new_unit"), f"demo/{name}") for name in DEMO_SUBJECTS]
        _, busy, unknown = units
        self.receiver.busy.add(str(busy))
        self.receiver.unknown.add(str(unknown))
        for unit in units:
            await connection.execute(query("demo/new_versions"), [unit], 1)
        dead_letter = (await self._wait(partial(self._dead_letters, connection), "there is a dead letter"))[0]
        await self._wait(partial(self._delivered, connection), "everything is delivered", pause=0.02)
        attempts = await queries.rows(connection, "demo/attempts", units)
        output.table(
            ("unit", "attempt", "status", "failure"),
            ((a["canonical_address"], a["attempt_no"], a["status"], a["failure_code"]) for a in attempts),
        )
        output.line(f"dead letter {dead_letter['id']}: {dead_letter['failure_detail']}")
        self.receiver.unknown.clear()
        answer = await dead_letters.replay(connection, dead_letter["id"], "demo")
        await self._wait(partial(self._resolved, connection), "the replay has arrived", pause=0.02)
        output.line(f"the receiver now accepts the customer; replay: {answer['status']}, then delivered")
        output.line("the trace of this event, from the audit (`iu-listen trace ID` shows it for any event):")
        waterfall.draw(await traces.life(connection, str(dead_letter["event_ref"])))
        await self._outage(connection)
        await routes.route_live(connection, DEMO_ROUTE, live=False, why="the demo continues", actor="demo")
        self._figure("delivered / dead letters open", f"{len(self.receiver.taken)} / 0")

    async def _outage(self, connection: Connection) -> None:
        self._title("The receiver stops and starts again: the circuit breaker")
        self.receiver.close()
        for number in range(4):
            unit = await connection.fetchval(query("demo/new_unit"), f"demo/during-{number}")
            await connection.execute(query("demo/new_versions"), [unit], 1)
        paused = await self._wait(partial(self._paused, connection), "the circuit breaker opens", pause=0.02)
        output.line(
            f"{paused['paused_by'].replace('_', ' ')} ({paused['why']}):"
            f" {paused['pending']} deliveries wait, without attempts"
        )
        began = time.perf_counter()
        await self.tasks.start(self.receiver.serve)
        await self._wait(partial(self._delivered, connection), "everything is delivered", pause=0.02)
        seconds = time.perf_counter() - began
        output.line(f"the receiver accepts events again: {paused['pending']} delivered, the circuit breaker is closed")
        self._figure("receiver started → all delivered", f"{seconds:.2f} s")

    async def _die(self, connection: Connection, consumer: subprocess.Popen[bytes]) -> None:
        self._title("The consumer is killed (kill -9) while events are written")
        consumer.kill()
        consumer.wait()
        unit = await connection.fetchval(query("demo/new_unit"), "demo/meanwhile")
        await connection.execute(query("demo/new_versions"), [unit], 1000)
        backlog = (await worker_health(connection, DEFAULT_WORKER))["backlog"]
        output.line(f"1 000 events were written meanwhile, without an error; backlog {output.text(backlog)}")

    async def _catch_up(self, connection: Connection) -> None:
        self._title("A new consumer is started, and catches up")
        began = time.perf_counter()
        counts = await self._count(connection)
        async with _bar("catch-up", counts["events"] - counts["attempted"]) as advance:
            await self._drained(connection, counts["events"], lambda done: advance(done - counts["attempted"]))
        self._figure("consumer started → 1 000 missed events routed", f"{time.perf_counter() - began:.2f} s")

    async def _end(self, connection: Connection) -> None:
        counts = await self._count(connection)
        self._figure(
            "events written / events routed", f"{output.text(counts['events'])} / {output.text(counts['attempted'])}"
        )
        if counts["events"] != counts["attempted"]:
            raise Refused("an event was not routed")
        output.line("")
        output.table(("measurement", "result"), self.figures, "Summary")
        output.note(
            "Next: `make up`; then in another terminal `. .venv/bin/activate`, `iu-listen emit`, `iu-listen status`."
            " See docs/tutorial/."
        )

    # -- common steps --------------------------------------------------------------------------------------------

    def _title(self, words: str) -> None:
        self._step += 1
        output.line(f"\n[bold]{self._step}. {words}[/]", markup=True)

    def _figure(self, what: str, measured: str) -> None:
        self.figures.append((what, measured))

    async def _count(self, connection: Connection) -> dict[str, int]:
        return (await queries.rows(connection, "demo/counts"))[0]

    async def _dead_letters(self, connection: Connection) -> list[queries.Row]:
        return (
            await dead_letters.page(connection, dead_letters.DeadLetterFilter(), resolved=False, before=None, limit=10)
        ).rows

    async def _resolved(self, connection: Connection) -> bool:
        return not await self._dead_letters(connection)

    async def _route(self, connection: Connection) -> queries.Row:
        return next(
            r for r in await queries.rows(connection, "delivery/routes", MAX_COUNT) if r["route_code"] == DEMO_ROUTE
        )

    async def _delivered(self, connection: Connection) -> bool:
        route = await self._route(connection)
        return not route["pending"] and not route["paused_by"]

    async def _paused(self, connection: Connection) -> queries.Row | None:
        route = await self._route(connection)
        return route if route["paused_by"] == "breaker_open" and route["pending"] == 4 else None

    async def _listens(self, connection: Connection) -> bool:
        return any(c["listening"] for c in await queries.rows(connection, "consumers"))

    async def _drained(
        self, connection: Connection, expected: int, tell: Callable[[int], None] = lambda _: None
    ) -> None:
        async def all_there() -> bool:
            attempted = (await self._count(connection))["attempted"]
            tell(attempted)
            return attempted >= expected

        await self._wait(all_there, "everything is routed", pause=0.02)

    async def _wait(self, check: Callable[[], Awaitable[Any]], until: str, pause: float = 0.0) -> Any:
        with anyio.move_on_after(STEP_TIMEOUT):
            while not (answer := await check()):  # noqa: ASYNC110 the demo does not listen for notifications
                await anyio.sleep(pause)
            return answer
        raise Refused(f"after {STEP_TIMEOUT:g} s this did not happen: {until}", "iu-listen doctor")

    @contextmanager
    def _consumer(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run a consumer in a separate process, which the demo can kill; it is stopped at the end of the block."""
        # The process gets its own session, so that Ctrl-C reaches only the demo, which then stops it in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "iu_listen", "run", "--log-format", "json", "--app", "iu_listen.cli.demo_target"],
            env=os.environ
            | {"IU_LISTEN_DSN": self.context.settings.dsn or "", RECEIVER_PORT_VARIABLE: str(self.receiver.port)},
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(self.context.settings.grace_period)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@asynccontextmanager
async def _bar(what: str, total: int) -> AsyncIterator[Callable[[int], None]]:
    """A progress bar on a terminal; yields a function that is called with the number of completed items."""
    console = output.err()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)

        def advance(done: int) -> None:
            progress.update(task, completed=done)

        yield advance
