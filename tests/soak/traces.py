"""Bursts of events while the receiver of the traces, or the consumer, fails: in the end every row is a span, exactly.

The consumer is the real command, the receiver a process of its own. Writers, dead letters and replays go on meanwhile.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from cli.command import Running, run
from support import connected, wait_until

TESTS: Final = Path(__file__).parents[1]
#: Events of one statement of a writer.
CHUNK: Final = 200
EVENTS: Final = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address)
    select 'iu', 'version_applied', 'update', 'immediate', case when n % 50 = 0 then 'poison' else 'kb/' || n end
      from generate_series(1, $1::integer) n
"""
#: One in fifty cannot be audited as dry run; of these, one in three is past help, the others are replayed with success.
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
    select span_id from v_iu_route_attempt union all select fn_iu_span_id('dead_letter', id::text) from iu_route_dead_letter
"""
SOME: Final = "select exported > $1 from iu_trace_cursor"
ROUTED: Final = "select count(*) = $1 from iu_route_attempt where attempt_no = 1"
REPLAYED: Final = "select not exists (select from iu_route_dead_letter where replay_count = 0)"
IDLE: Final = "select fn_iu_trace_tick('traces') ->> 'status' = 'idle'"
#: What an attempt and a dead letter are called; half a name is none.
NAMES: Final = frozenset({"process event_outbox", "dead_letter event_outbox"})
#: What befalls the receiver, or the consumer, in the middle.
FAULTS: Final = ("none", "gone", "503", "429", "hangs", "receiver killed", "consumer killed")
#: How often somebody is killed.
KILLS: Final = 10


class Backend:
    """The receiver's process, and what it has taken.

    Attributes:
        endpoint: Where it listens; the same after a restart.
    """

    def __init__(self, protocol: str, home: Path) -> None:
        self._protocol = protocol
        self._file = home / "taken"
        self._port = 0
        self.start()

    def start(self) -> None:
        """Let it listen."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.receiver", self._protocol, str(self._port), str(self._file)],
            cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.endpoint = self._answer()
        self._port = int(self.endpoint.rpartition(":")[2])

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def behave(self, how: str) -> None:
        """Answer like this from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{how}\n")
        self._process.stdin.flush()
        assert self._answer() == "yes"

    def kill(self) -> None:
        """End it at once, with whatever is on its way."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def taken(self) -> list[tuple[str, str]]:
        """Span id and name of everything it took, repetitions included; a line that was cut off is not taken."""
        return [(line[:16], line[17:]) for line in self._file.read_text().splitlines() if len(line) > 17]


@dataclass(frozen=True)
class Verdict:
    """What came of one burst.

    Attributes:
        fault: What befell it.
        rows: Attempts and dead letters.
        missing: Of these, how many the receiver does not have.
        invented: Spans of attempts and dead letters that there are not.
        repeated: How many spans came once more.
        letters: Dead letters.
        replays: Attempts beyond the first.
        seconds: How long all of it took.
    """

    fault: str
    rows: int
    missing: int
    invented: int
    repeated: int
    letters: int
    replays: int
    seconds: float


@contextmanager
def backend(protocol: str) -> Iterator[Backend]:
    """A receiver for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="iu-soak-") as home:
        found = Backend(protocol, Path(home))
        try:
            yield found
        finally:
            found.kill()


async def _write(dsn: str, events: int) -> None:
    async with connected(dsn) as writer:
        for done in range(0, events, CHUNK):
            await writer.execute(EVENTS, min(CHUNK, events - done))


async def _replay(dsn: str) -> None:
    async with connected(dsn) as operator:
        while True:
            await operator.execute(REPLAY)
            await asyncio.sleep(0.1)


async def _strike(fault: str, there: Backend, consumer: list[Running], begin: object, seconds: float) -> None:
    """Let the fault happen, and end."""
    if fault in ("503", "429", "hangs"):
        there.behave(fault)
        await asyncio.sleep(seconds)
        there.behave("keep")
    elif fault == "gone":
        there.kill()
        await asyncio.sleep(seconds)
        there.start()
    elif fault == "receiver killed":
        for _ in range(KILLS):
            there.kill()
            there.start()
            await asyncio.sleep(seconds / KILLS)
    elif fault == "consumer killed":
        for _ in range(KILLS):
            consumer[0].process.kill()
            consumer[0].close()
            consumer[0] = begin()  # type: ignore[operator]
            await asyncio.sleep(seconds / KILLS)


async def _done(watching: asyncpg.Connection, question: str, *args: object) -> bool:
    """Ask, not too often: counting is not what is measured."""
    await asyncio.sleep(0.2)
    return bool(await watching.fetchval(question, *args))


async def soak(dsn: str, fault: str, *, events: int, seconds: float, protocol: str = "http/protobuf") -> Verdict:
    """One burst.

    Args:
        dsn: A database with the package applied and the gate open; nothing routes there yet.
        fault: One of FAULTS.
        events: How many are written.
        seconds: How long the fault lasts.
        protocol: ``http/protobuf`` or ``grpc``.
    """
    began = time.monotonic()
    with backend(protocol) as there:
        environ = {
            "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": there.endpoint, "IU_LISTEN_LEASE": "6",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }  # fmt: skip
        assert run("trace-export", dsn=dsn, env=environ).code == 0

        def begin() -> Running:
            return Running("run", dsn=dsn, env=environ)

        consumer = [begin()]
        try:
            async with connected(dsn) as watching:
                await watching.execute(POISON)
                writers = [asyncio.create_task(_write(dsn, events // 4)) for _ in range(4)]
                replaying = asyncio.create_task(_replay(dsn))
                await wait_until(lambda: _done(watching, SOME, events // 10), "some are exported", 600)
                await _strike(fault, there, consumer, begin, seconds)
                await asyncio.gather(*writers)
                await wait_until(lambda: _done(watching, ROUTED, events // 4 * 4), "all are routed", 1800)
                await wait_until(lambda: _done(watching, REPLAYED), "every dead letter was replayed", 600)
                replaying.cancel()
                await wait_until(lambda: _done(watching, IDLE), "all is exported", 1800)
                expected = {row[0] for row in await watching.fetch(SPANS)}
                letters = await watching.fetchval("select count(*) from iu_route_dead_letter")
                replays = await watching.fetchval("select count(*) from iu_route_attempt where attempt_no > 1")
            assert consumer[0].end(timeout=60) == 0
        finally:
            consumer[0].close()
        taken = there.taken()
        found = {span for span, name in taken if name in NAMES}
    return Verdict(
        fault, len(expected), len(expected - found), len(found - expected),
        len(taken) - len({span for span, _ in taken}), letters, replays, time.monotonic() - began,
    )  # fmt: skip
