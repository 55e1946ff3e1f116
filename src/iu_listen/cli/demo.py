"""demo: shows the main job, from an empty database to a summary with measurements, and ends by itself."""

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
from iu_listen.admin import dead_letters as letters
from iu_listen.admin.health import worker_health
from iu_listen.cli import output, waterfall
from iu_listen.cli.context import CommandContext, between, opened, with_dsn
from iu_listen.cli.demo_target import PORT, Receiver
from iu_listen.cli.install import applied, print_proof
from iu_listen.install.preflight import ApplyOptions
from iu_listen.install.probe import run_probe
from iu_listen.model.errors import Refused
from iu_listen.model.routing import DEFAULT_WORKER
from iu_listen.postgres import queries
from iu_listen.postgres.session import Connection
from iu_listen.postgres.sqlfiles import query

DATABASE: Final = "iu_demo"
#: Longest duration of a step of the demo, in seconds; after it the demo fails.
PATIENCE: Final = 60.0
WRITERS: Final = 4
#: The live route, and the subjects of its events: the receiver accepts the first one, accepts the second one at the
#: second attempt, and rejects the third one.
ROUTE: Final = "demo.crm"
CUSTOMERS: Final = ("customer", "customer-busy", "customer-unknown")


def register(app: App) -> None:
    """Add this command."""
    app.command(demo)


def demo(
    *, burst: Annotated[int, Parameter(help="Events in the burst.", validator=between(1, 10_000_000))] = 20_000
) -> int:
    """Show the main job on the embedded server: apply, prove, route, drain, deliver, fail, replay, die, catch up.

    It works on a database of its own, iu_demo, new each time, and ends by itself.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    os.environ.pop("IU_LISTEN_DSN", None)
    for name in set(os.environ) - set(environ):
        del os.environ[name]
    with opened(None) as door:
        return anyio.run(_Demo(door, burst).run)


@dataclass
class _Demo:
    """The steps of the demo, and the figures that they measure."""

    door: CommandContext
    burst: int
    figures: list[tuple[str, str]] = field(default_factory=list)
    receiver: Receiver = field(default_factory=Receiver)
    tasks: anyio.abc.TaskGroup = field(init=False)
    _step: int = 0

    async def run(self) -> int:
        async with self.door.session("iu-listen demo") as only:
            if not await queries.value(only, "demo/lock"):
                raise Refused(
                    "another demo runs on this embedded server", "Wait for its end, or give another IU_LISTEN_DATA_DIR."
                )
            return await self._whole()

    async def _whole(self) -> int:
        await self._fresh_database()
        async with anyio.create_task_group() as self.tasks, self.door.session("iu-listen demo") as connection:
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
        self._title("A PostgreSQL of its own, an empty database")
        async with self.door.session() as connection:
            for statement in query("demo/fresh_database").split(";"):
                await connection.execute(statement)
            version = await connection.fetchval("show server_version")
        assert self.door.server is not None
        self.door = replace(self.door, settings=with_dsn(self.door.settings, self.door.server.dsn(DATABASE)))
        output.line(f"PostgreSQL {version} in {self.door.settings.data_dir}/, database {DATABASE}")
        self._figure("database ready", f"{time.perf_counter() - began:.2f} s")

    async def _apply_and_prove(self, connection: Connection) -> None:
        self._title("The substrate, then the package through its gates, then the checks")
        began = time.perf_counter()
        terms = ApplyOptions(
            dsn=self.door.settings.dsn, no_backup="demo database, empty", programs=self.door.programs, base=True
        )
        answer = await applied(self.door, connection, terms, quiet=True)
        shut = [f"{g['name']}: {g['evidence']}" for g in answer["gates"] if not g["pass"]]
        wrong = [c["id"] for c in answer.get("verify", []) if not c["pass"]]
        if not answer["pass"]:
            raise Refused(f"the demo database could not be set up: {'; '.join(shut + wrong)}")
        for gate in answer["gates"]:
            output.line(f"{output.mark(True, 'PASS')}  {gate['number']} {gate['name']}", markup=True)
        output.line(f"{len(answer['applied'])} files applied; {len(answer['verify'])} checks pass")
        self._figure("applied through eight gates, verified", f"{time.perf_counter() - began:.2f} s")
        self._title("The probe, A to H, now on the installed package; rolled back")
        proof = await run_probe(connection, self.door.session)
        for finding in proof.probes:
            output.line(f"{output.mark(finding.passed, 'PASS', 'FAIL')}  {escape(finding.scenario)}", markup=True)
        if not proof.passed:
            print_proof(proof)
            raise Refused("the probe does not show the seed's figures")
        await gates.set_gate(connection, "worker", opened=True)

    async def _business(self, connection: Connection) -> None:
        self._title("Business: each new version of a unit is an event; this is its way")
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
        columns = ("unit", "event", "writer knew after", "decided after", "decision")
        output.table(columns, ways, spare=("event",))
        self._figure("insert → decision, median of 10", f"{sorted(total)[len(total) // 2]:.2f} ms")

    async def _burst(self, connection: Connection) -> None:
        self._title(f"A burst of {output.text(self.burst)} events from {WRITERS} writers, and the drain")
        units = [await connection.fetchval(query("demo/new_unit"), f"demo/burst-{n:02}") for n in range(20)]
        before = (await self._count(connection))["attempted"]
        expected = (await self._count(connection))["events"] + self.burst
        began = time.perf_counter()

        async def write(mine: list[UUID], count: int) -> None:
            chunk = max(1, count // 20)
            async with self.door.session("iu-listen demo writer") as writer:
                for number, first in enumerate(range(0, count, chunk)):
                    some = min(chunk, count - first)
                    await writer.execute(query("demo/new_versions"), [mine[number % len(mine)]], some)

        async with anyio.create_task_group() as tasks:
            for n in range(WRITERS):
                tasks.start_soon(write, units[n::WRITERS], len(range(n, self.burst, WRITERS)))
            async with _bar("drain", self.burst) as advance:
                await self._drained(connection, expected, lambda done: advance(done - before))
        seconds = time.perf_counter() - began
        output.line(f"{output.text(self.burst)} events written and routed in {seconds:.2f} s")
        self._figure("burst, written and routed", f"{output.text(round(self.burst / seconds))} events/s")

    async def _deliver(self, connection: Connection) -> None:
        self._title("One route goes live: a coroutine delivers to a receiver; a failure, a retry, a dead letter")
        await connection.execute(query("demo/live_route"))
        await gates.set_gate(connection, "delivery", opened=True)
        await routes.route_live(connection, ROUTE, live=True, why="the demo", actor="demo")
        units = [await connection.fetchval(query("demo/new_unit"), f"demo/{name}") for name in CUSTOMERS]
        _, busy, unknown = units
        self.receiver.busy.add(str(busy))
        self.receiver.unknown.add(str(unknown))
        for unit in units:
            await connection.execute(query("demo/new_versions"), [unit], 1)
        letter = (await self._wait(partial(self._letters, connection), "there is a dead letter"))[0]
        await self._wait(partial(self._delivered, connection), "everything is delivered", pause=0.02)
        attempts = await queries.rows(connection, "demo/attempts", units)
        output.table(
            ("unit", "attempt", "came to", "because"),
            ((a["canonical_address"], a["attempt_no"], a["status"], a["failure_code"]) for a in attempts),
        )
        output.line(f"dead letter {letter['id']}: {letter['failure_detail']}")
        self.receiver.unknown.clear()
        answer = await dead_letters.replay(connection, letter["id"], "demo")
        await self._wait(partial(self._resolved, connection), "the replay has arrived", pause=0.02)
        output.line(f"the receiver knows the customer now; replayed: {answer['status']}, and delivered")
        output.line("its whole life, out of the audit; `iu-listen trace ID` draws it of any event:")
        waterfall.draw(await traces.life(connection, str(letter["event_ref"])))
        await self._outage(connection)
        await routes.route_live(connection, ROUTE, live=False, why="the demo goes on", actor="demo")
        self._figure("delivered / dead letters open", f"{len(self.receiver.taken)} / 0")

    async def _outage(self, connection: Connection) -> None:
        self._title("The receiver goes away, and comes back: the circuit breaker")
        self.receiver.close()
        for number in range(4):
            unit = await connection.fetchval(query("demo/new_unit"), f"demo/during-{number}")
            await connection.execute(query("demo/new_versions"), [unit], 1)
        held = await self._wait(partial(self._held, connection), "the circuit breaker opens", pause=0.02)
        output.line(
            f"{held['paused_by'].replace('_', ' ')} ({held['why']}): {held['pending']} wait, no attempt is spent"
        )
        began = time.perf_counter()
        await self.tasks.start(self.receiver.serve)
        await self._wait(partial(self._delivered, connection), "everything is delivered", pause=0.02)
        seconds = time.perf_counter() - began
        output.line(f"the receiver is back: {held['pending']} delivered, the circuit breaker is closed")
        self._figure("receiver back → all delivered", f"{seconds:.2f} s")

    async def _die(self, connection: Connection, consumer: subprocess.Popen[bytes]) -> None:
        self._title("The consumer is killed (kill -9); the business goes on")
        consumer.kill()
        consumer.wait()
        unit = await connection.fetchval(query("demo/new_unit"), "demo/meanwhile")
        await connection.execute(query("demo/new_versions"), [unit], 1000)
        backlog = (await worker_health(connection, DEFAULT_WORKER))["backlog"]
        output.line(f"1 000 events were written meanwhile; backlog {output.text(backlog)}, no writer noticed")

    async def _catch_up(self, connection: Connection) -> None:
        self._title("It is started again, and catches up by itself")
        began = time.perf_counter()
        counts = await self._count(connection)
        async with _bar("catch-up", counts["events"] - counts["attempted"]) as advance:
            await self._drained(connection, counts["events"], lambda done: advance(done - counts["attempted"]))
        self._figure("started, and 1 000 missed events caught up", f"{time.perf_counter() - began:.2f} s")

    async def _end(self, connection: Connection) -> None:
        counts = await self._count(connection)
        self._figure(
            "events written / events decided", f"{output.text(counts['events'])} / {output.text(counts['attempted'])}"
        )
        if counts["events"] != counts["attempted"]:
            raise Refused("an event has no decision")
        output.line("")
        output.table(("measured", ""), self.figures, "Summary")
        output.note(
            "Next: make up; in another terminal . .venv/bin/activate, iu-listen emit, iu-listen status. docs/tutorial/"
        )

    # -- common steps --------------------------------------------------------------------------------------------

    def _title(self, words: str) -> None:
        self._step += 1
        output.line(f"\n[bold]{self._step}. {words}[/]", markup=True)

    def _figure(self, what: str, measured: str) -> None:
        self.figures.append((what, measured))

    async def _count(self, connection: Connection) -> dict[str, int]:
        return (await queries.rows(connection, "demo/counts"))[0]

    async def _letters(self, connection: Connection) -> list[queries.Row]:
        return (await letters.page(connection, letters.Filter(), resolved=False, before=None, limit=10)).letters

    async def _resolved(self, connection: Connection) -> bool:
        return not await self._letters(connection)

    async def _route(self, connection: Connection) -> queries.Row:
        return next(r for r in await queries.rows(connection, "delivery/routes") if r["route_code"] == ROUTE)

    async def _delivered(self, connection: Connection) -> bool:
        route = await self._route(connection)
        return not route["pending"] and not route["paused_by"]

    async def _held(self, connection: Connection) -> queries.Row | None:
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

    async def _wait(self, ask: Callable[[], Awaitable[Any]], until: str, pause: float = 0.0) -> Any:
        with anyio.move_on_after(PATIENCE):
            while not (answer := await ask()):  # noqa: ASYNC110 the demo does not listen for notifications
                await anyio.sleep(pause)
            return answer
        raise Refused(f"waited {PATIENCE:g} s in vain until {until}", "iu-listen doctor")

    @contextmanager
    def _consumer(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run a consumer in a separate process, which the demo can kill; it is stopped at the end of the block."""
        # The process gets its own session, so that Ctrl-C reaches only the demo, which then stops it in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "iu_listen", "run", "--log-format", "json", "--app", "iu_listen.cli.demo_target"],
            env=os.environ | {"IU_LISTEN_DSN": self.door.settings.dsn or "", PORT: str(self.receiver.port)},
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(self.door.settings.grace_period)
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
