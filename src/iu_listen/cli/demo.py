"""demo: the main job from an empty database to a measured summary, ending by itself."""

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
from cyclopts import App, Parameter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from iu_listen.cli import show, waterfall
from iu_listen.cli.door import Door, opened, with_dsn
from iu_listen.cli.prove import apply_on, print_proof
from iu_listen.model.errors import Refused
from iu_listen.model.facts import DEFAULT_WORKER
from iu_listen.postgres import census, trace
from iu_listen.postgres.gates import Terms
from iu_listen.postgres.probe import run_probe
from iu_listen.postgres.session import Connection
from iu_listen.postgres.sqlfiles import query

DATABASE: Final = "iu_demo"
#: How long a step of the demo may take before it is called a failure, in seconds.
PATIENCE: Final = 60.0
WRITERS: Final = 4


def register(app: App) -> None:
    """Add this command."""
    app.command(demo)


def demo(*, burst: Annotated[int, Parameter(help="Events in the burst.")] = 20_000) -> int:
    """Show the main job on the embedded server: apply, prove, route, drain, fail, replay, die, catch up.

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
    """The demo's steps, and the figures that they measure."""

    door: Door
    burst: int
    figures: list[tuple[str, str]] = field(default_factory=list)
    _step: int = 0

    async def run(self) -> int:
        await self._fresh_database()
        async with self.door.session("iu-listen demo") as connection:
            await self._apply_and_prove(connection)
            with self._consumer() as consumer:
                await self._wait(lambda: self._listens(connection), "the consumer listens", pause=0.02)
                await self._business(connection)
                await self._burst(connection)
                await self._dead_letter(connection)
                await self._die(connection, consumer)
            with self._consumer():
                await self._catch_up(connection)
            await self._end(connection)
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
        show.line(f"PostgreSQL {version} in {self.door.settings.data_dir}/, database {DATABASE}")
        self._figure("database ready", f"{time.perf_counter() - began:.2f} s")

    async def _apply_and_prove(self, connection: Connection) -> None:
        self._title("The substrate, then the package through its eight gates, then the W checks")
        began = time.perf_counter()
        terms = Terms(
            dsn=self.door.settings.dsn, no_backup="demo database, empty", programs=self.door.programs, base=True
        )
        if await apply_on(self.door, connection, terms, machine=False):
            raise Refused("the demo database could not be set up")
        self._figure("applied through eight gates, verified", f"{time.perf_counter() - began:.2f} s")
        self._title("The probe, A to H, now on the installed package")
        proof = await run_probe(connection, self.door.session)
        print_proof(proof)
        if not proof.passed:
            raise Refused("the probe does not show the seed's figures")
        self._title("The worker gate opens, the consumer starts")
        await census.set_gate(connection, "worker", opened=True)

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
            # The database says when, on the same clock: asking again and again would slow down what is measured.
            decided = way["decided_at"] - began
            total.append(1000 * decided)
            if number <= 5:
                ways.append((way["canonical_address"], str(way["id"]), f"{1000 * (written - began):.2f} ms",
                             f"{1000 * decided:.2f} ms", way["status"]))  # fmt: skip
            await anyio.sleep(0.03)
        show.table(("unit", "event", "writer knew after", "decided after", "decision"), ways)
        self._figure("insert → decision, median of 10", f"{sorted(total)[len(total) // 2]:.2f} ms")

    async def _burst(self, connection: Connection) -> None:
        self._title(f"A burst of {show.text(self.burst)} events from {WRITERS} writers, and the drain")
        units = [await connection.fetchval(query("demo/new_unit"), f"demo/burst-{n:02}") for n in range(20)]
        each = max(1, self.burst // (len(units) * WRITERS * 5))
        before = await connection.fetchrow(query("demo/counts"))
        assert before is not None
        expected = before["events"] + len(units) * each * WRITERS * 5
        began = time.perf_counter()

        async def write(mine: list[UUID]) -> None:
            async with self.door.session("iu-listen demo writer") as writer:
                for _ in range(5 * WRITERS):
                    await writer.execute(query("demo/new_versions"), mine, each)

        async with anyio.create_task_group() as tasks:
            for n in range(WRITERS):
                tasks.start_soon(write, units[n::WRITERS])
            async with _bar("drain", expected - before["events"]) as advance:
                await self._drained(connection, expected, lambda done: advance(done - before["attempted"]))
        seconds = time.perf_counter() - began
        count = expected - before["events"]
        show.line(f"{show.text(count)} events written and routed in {seconds:.2f} s")
        self._figure("burst, written and routed", f"{count / seconds:,.0f} events/s".replace(",", " "))

    async def _dead_letter(self, connection: Connection) -> None:
        self._title("One poison event among good ones: a dead letter, and its replay")
        broken = await connection.fetchval(query("demo/new_unit"), "demo/broken")
        good = await connection.fetchval(query("demo/new_unit"), "demo/good")
        await connection.execute(query("demo/break_audit"))
        for unit in (good, broken, good):
            await connection.execute(query("demo/new_versions"), [unit], 1)
        letters = await self._wait(
            lambda: census.rows(connection, "list_dead_letters", False, None, None, None, None, None, None, 10),
            "there is a dead letter",
        )
        await self._drained(connection, (await self._count(connection))["events"])
        show.line(f"dead letter {letters[0]['id']}: {letters[0]['failure_detail']}")
        show.line("the good events around it were routed; the stream never stopped")
        await connection.execute(query("demo/mend_audit"))
        answer = await census.replay(connection, letters[0]["id"], "demo")
        show.line(
            f"mended, replayed: {answer['status']}, decision {answer['decision']}, attempt {answer['attempt_no']}"
        )
        if not answer["resolved"]:
            raise Refused("the replay did not resolve the dead letter")
        show.line("its whole life, out of the audit; `iu-listen trace ID` draws it of any event:")
        waterfall.draw(await trace.life(connection, str(letters[0]["event_ref"])))
        self._figure("dead letters: open / resolved", "0 / 1")

    async def _die(self, connection: Connection, consumer: subprocess.Popen[bytes]) -> None:
        self._title("The consumer is killed (kill -9); the business goes on")
        consumer.kill()
        consumer.wait()
        unit = await connection.fetchval(query("demo/new_unit"), "demo/meanwhile")
        await connection.execute(query("demo/new_versions"), [unit], 1000)
        backlog = (await census.worker_health(connection, DEFAULT_WORKER))["backlog"]
        show.line(f"1 000 events were written meanwhile; backlog {show.text(backlog)}, no writer noticed")

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
            "events written / events decided", f"{show.text(counts['events'])} / {show.text(counts['attempted'])}"
        )
        if counts["events"] != counts["attempted"]:
            raise Refused("an event has no decision")
        show.line("")
        show.table(("measured", ""), self.figures, "Summary")
        show.note(
            "Next: make up; in another terminal . .venv/bin/activate, iu-listen emit, iu-listen status. docs/tutorial/"
        )

    # -- what they have in common --------------------------------------------------------------------------------

    def _title(self, words: str) -> None:
        self._step += 1
        show.line(f"\n[bold]{self._step}. {words}[/]", markup=True)

    def _figure(self, what: str, measured: str) -> None:
        self.figures.append((what, measured))

    async def _count(self, connection: Connection) -> dict[str, int]:
        return (await census.rows(connection, "demo/counts"))[0]

    async def _listens(self, connection: Connection) -> bool:
        return any(c["listening"] for c in await census.rows(connection, "consumers"))

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
            while not (answer := await ask()):  # noqa: ASYNC110 the database rings no bell for us here
                await anyio.sleep(pause)
            return answer
        raise Refused(f"waited {PATIENCE:g} s in vain until {until}", "iu-listen doctor")

    @contextmanager
    def _consumer(self) -> Iterator[subprocess.Popen[bytes]]:
        """iu-listen run, in a process of its own that can be killed; stopped at the end of the block at the latest."""
        # A session of its own: Ctrl-C reaches us alone, and we stop it in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "iu_listen", "run", "--log-format", "json"],
            env=os.environ | {"IU_LISTEN_DSN": self.door.settings.dsn or ""},
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(self.door.settings.grace)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@asynccontextmanager
async def _bar(what: str, total: int) -> AsyncIterator[Callable[[int], None]]:
    """A progress bar on a terminal; yields a function that is told how many are done."""
    console = show.err()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)

        def advance(done: int) -> None:
            progress.update(task, completed=done)

        yield advance
