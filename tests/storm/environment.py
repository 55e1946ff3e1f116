"""The environment of the storm: a PostgreSQL, a proxy that can break connections, and consumers that are restarted.

    producers, checks ──────────────► server        Environment.connect(): the server that takes writes at present
    consumer 1, 2 ──► Environment.path ──► server        a proxy whose address stays the same when the server changes

Consumers are real processes, `iu-listen run`: one is active, one is a standby. Their lease, intervals and deadlines are
short, so that a storm has many faults in a short time; the bounds of recovery in faults.py depend on the same values.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from iu_listen import embedded
from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.postgres.lease import LEASE_KEY
from iu_listen.postgres.session import session
from proxy import Proxy
from support import WORKER, open_gate

if TYPE_CHECKING:
    from storm.producers import Producers

TESTS = Path(__file__).parents[1]

#: Settings of the consumers, in seconds; the defaults are 15, 5, 10, 60 and 10.
SESSION_TIMEOUT, CATCH_UP, DEADLINE, BATCH_DEADLINE, RECONNECT_MAX = 3.0, 1.0, 4.0, 15.0, 1.0
#: Pause of the supervisor before it starts a consumer again, in seconds.
RESTART_DELAY = 0.2
#: Default time limit of every wait, in seconds; exceeding it is a failure.
WAIT_TIMEOUT = 60.0

#: full_page_writes is on, because PostgreSQL is killed; fsync is off, because the kernel is not.
SERVER_OPTIONS = {
    "full_page_writes": "on",
    "max_connections": "150",
    "max_prepared_transactions": "50",
    "track_commit_timestamp": "on",
    "deadlock_timeout": "200ms",
    "max_wal_size": "1GB",
}

#: A notification queue so small that it can be filled, and the first version of PostgreSQL that has the setting.
SMALL_QUEUE, SINCE_SMALL_QUEUES = {"max_notify_queue_pages": "64"}, 17

#: Database objects of a storm besides the package. Every event that counts takes both enabled routes: a dry run, and
#: one that delivers to storm/target.py in the order of subjects.
ROUTES = ("iu.version_applied.workflow", "storm.live")
SCHEMA = """
    insert into event_type_registry (event_domain, event_type, event_stream, delivery_lane)
    values ('system', 'version_applied', 'update', 'immediate');
    update dot_config set value = 'true' where key = 'iu_core.delivery_enabled';
    update dot_config set value = 'storm.live' where key = 'iu_core.delivery_live_routes';
    insert into iu_outbound_route
        (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run, delivery_policy)
    values ('storm.live', 'iu', 'version_applied', 'update', 'workflow', 'storm', true, false,
            '{"order": "subject", "concurrency": 100, "attempts": 3, "backoff": 0.01, "backoff_max": 0.1, "trial_interval_max": 1,
              "dead_letters_in_a_row": 1000000}'),
           ('storm.disabled', 'iu', 'version_applied', 'update', 'report', 'storm', false, true, '{}');
    create schema storm;
    -- Each row is a subject. turn counts its events: the transaction that holds the row lock draws the next one.
    create table storm.subject (id int primary key, turn bigint not null default 0) with (fillfactor = 20);
    insert into storm.subject select generate_series(0, 99);
    -- The payload that makes the target behave as planned; or one of few stored bytes whose text is too large to be delivered.
    create function storm.payload(p_behavior text) returns jsonb language sql volatile as $$
        select case when p_behavior = 'huge digits' then jsonb_agg(1e131071::numeric)
                    when p_behavior = 'huge text' then jsonb_build_object('a', string_agg(repeat('x', 100000), ''))
                    else jsonb_build_object('do', p_behavior) end
          from generate_series(1, case when p_behavior like 'huge %' then 200 else 1 end)
    $$;
    -- Whether the event asks for a successful call; for a CHECK that refuses its attempt.
    create function storm.returns(p_event uuid) returns boolean language sql stable as $$
        select exists (select from public.event_outbox o where o.id = p_event and o.safe_payload ->> 'do' = 'return')
    $$;
    -- For the naive cursor that is run for comparison.
    create index storm_created_at on event_outbox (event_domain, created_at, id);
    -- One subtransaction for each row; every third one is rolled back.
    create function storm.subtransactions(p_key bigint, p_from int, p_to int) returns void language plpgsql as $$
    begin
        for n in p_from .. p_to loop
            begin
                insert into public.event_outbox (id, event_domain, event_type, event_stream, delivery_lane)
                values (storm.event(p_key, n), 'iu', 'version_applied', 'update', 'immediate');
                if n % 3 = 0 then
                    raise sqlstate 'SR001';
                end if;
            exception when sqlstate 'SR001' then
                null;
            end;
        end loop;
    end $$;
    -- The id of an event consists of the key of its transaction and the number of its row.
    create function storm.event(p_key bigint, p_row int) returns uuid language sql immutable as $$
        select (lpad(to_hex(p_key), 16, '0') || lpad(to_hex(p_row), 16, '0'))::uuid
    $$;
"""


class Session(asyncpg.Connection):
    """A session with its name and the time at which it was opened, by the monotonic clock."""

    name = ""
    opened = 0.0


class Consumer:
    """An `iu-listen run` process that is started again whenever it ends, as by systemd.

    Args:
        name: Name of its log file.
        dsn: The database.
        folder: Directory of its log file.

    Attributes:
        call_log_file: The file of calls that its target writes (storm/target.py).
        environ: Additional environment variables, from its next start on.
        starts: Number of starts.
        stopped_by_sigterm: Whether SIGTERM ended it at the end; False: it had to be killed.
    """

    def __init__(self, name: str, dsn: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.call_log_file = folder / f"{name}.calls"
        self.environ: dict[str, str] = {}
        self._dsn = dsn
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.starts = 0
        self.stopped_by_sigterm = True

    @property
    def pid(self) -> int | None:
        """The process id, or None if it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def code(self) -> int | None:
        """Exit code of the latest process; None while it runs."""
        return self._process.returncode if self._process else None

    def begin(self) -> None:
        """Start the process, and keep it running until end()."""
        self._keeper = asyncio.create_task(self._keep())

    def signal(self, number: int) -> None:
        """Send a signal, if the process runs."""
        if self.pid is not None:
            os.kill(self.pid, number)

    async def kill_and_wait(self) -> None:
        """Kill the process, and wait until it was started again."""
        starts = self.starts
        self.signal(signal.SIGKILL)
        while self.starts == starts:
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Stop the process and do not start it again."""
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def _keep(self) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "IU_LISTEN_", "OTEL_"))}
        settings = {
            "SESSION_TIMEOUT": SESSION_TIMEOUT, "CATCH_UP": CATCH_UP, "DEADLINE": DEADLINE, "BATCH_DEADLINE": BATCH_DEADLINE,
            "RECONNECT_MAX": RECONNECT_MAX, "LOG_FORMAT": "json", "DSN": self._dsn, "APP": "storm.target",
        }  # fmt: skip
        environ = clean | {f"IU_LISTEN_{name}": str(value) for name, value in settings.items()}
        environ |= {"PYTHONPATH": str(TESTS), "STORM_CALL_LOG": str(self.call_log_file)}
        try:
            while True:
                with self.log.open("ab") as log:
                    self._process = await asyncio.create_subprocess_exec(
                        sys.executable, "-m", "iu_listen", "run", env=environ | self.environ, stdout=log, stderr=log
                    )
                self.starts += 1
                await self._process.wait()
                await asyncio.sleep(RESTART_DELAY)
        finally:
            await self._leave()

    async def _leave(self) -> None:
        if (process := self._process) is None or process.returncode is not None:
            return
        # A frozen process is resumed first, because it could not handle SIGTERM.
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            self.stopped_by_sigterm = False
            process.kill()
            await process.wait()


@dataclass
class Environment:
    """The environment of a storm, on which faults and producers act.

    Attributes:
        server: The server that takes writes at present. A fault that promotes another one sets it, and calls
            ``path.lead_to()``.
        path: The proxy between the consumers and the server.
        consumers: The processes, in the order of their first starts.
        home: The data directory, also of further servers; a separate filesystem if possible (faults/disk.py).
        folder: Directory of the logs that are kept when the storm fails.
        rng: Random numbers for faults, which run one after the other.
        producers: The producers; set when they start.
        cuts_sessions: Whether a fault that cuts producers is active: their lost connections are not errors.
        repaired_at: End of the latest such fault: older sessions may detect the loss later.
        errors_allowed: Whether a fault is active under which producers may fail, as a full disk.
        short: Whether the storm is short: then faults that last are short, too.
        measuring: Whether a recovery is being measured: only the consumers may run batches.
        notes: State of faults and background actions.
        cleanup: Resources of faults that are closed when the storm is over.
    """

    server: embedded.Server
    path: Proxy
    home: Path
    folder: Path
    rng: random.Random
    consumers: list[Consumer] = field(default_factory=list)
    producers: Producers | None = None
    cuts_sessions: bool = False
    repaired_at: float = 0.0
    errors_allowed: bool = False
    short: bool = False
    measuring: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    cleanup: ExitStack = field(default_factory=ExitStack)
    _query_session: Session | None = None

    @property
    def dsn(self) -> str:
        """The DSN of the server that takes writes at present, without the proxy."""
        return self.server.dsn()

    async def connect(self, name: str) -> Session:
        """Open a session with the server that takes writes at present; the caller ends it by terminate()."""
        opened = time.monotonic()
        session = await asyncpg.connect(
            self.dsn, server_settings={"application_name": name}, timeout=10, connection_class=Session
        )
        session.name, session.opened = name, opened
        return session

    async def rows(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Run a query on the present server; repeat it for up to PATIENCE seconds while the server is not available."""
        until = time.monotonic() + WAIT_TIMEOUT
        while True:
            query_session, self._query_session = self._query_session, None
            try:
                query_session = query_session or await self.connect("storm scout")
                found = await query_session.fetch(query, *args)
            except CONNECTION_ERRORS:
                if query_session:
                    query_session.terminate()
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.05)
            else:
                if self._query_session:
                    query_session.terminate()
                else:
                    self._query_session = query_session
                return found

    async def value(self, query: str, *args: Any) -> Any:
        """Return the single value of a query."""
        return (await self.rows(query, *args))[0][0]

    async def until(self, query: str, *args: Any, within: float = WAIT_TIMEOUT, pause: float = 0.005) -> float:
        """Repeat a query until its single value is true; return the seconds that it took. Raises TimeoutError."""
        began = time.monotonic()
        while not await self.value(query, *args):
            if time.monotonic() - began > within:
                raise TimeoutError(f"the query was not true within {within} s: {query}")
            await asyncio.sleep(pause)
        return time.monotonic() - began

    # -- the consumers -------------------------------------------------------------------------------------------

    async def restart_consumers(self) -> None:
        """Restart all consumers, as after a change of their settings; then wait until one is active."""
        for consumer in self.consumers:
            consumer.signal(signal.SIGTERM)
        starts = [c.starts for c in self.consumers]
        async with asyncio.timeout(WAIT_TIMEOUT):
            while any(c.starts == before for c, before in zip(self.consumers, starts, strict=True)):
                await asyncio.sleep(0.02)
        await self.active_consumer()

    async def active_consumer(self) -> Consumer:
        """Return the active consumer, by a heartbeat from now on: an older one may be of a killed process."""
        now = await self.value("select clock_timestamp()")
        until = time.monotonic() + WAIT_TIMEOUT
        while time.monotonic() < until:
            beats = await self.rows(
                """select pid from iu_consumer_heartbeat
                    where worker_name = $1 and state in ('idle', 'busy') and beat_at > $2 order by beat_at desc""",
                WORKER,
                now,
            )
            for beat in beats:
                for consumer in self.consumers:
                    if consumer.pid == beat["pid"]:
                        return consumer
            await asyncio.sleep(0.02)
        raise TimeoutError("no consumer became active")

    async def lease_holder(self) -> int | None:
        """The process id of the backend that holds the lease."""
        return await self.value(
            "select (select pid from pg_locks where locktype = 'advisory' and classid = $1 and granted)", LEASE_KEY
        )

    async def wait_for_log(self, words: str, before: int) -> float:
        """Wait until the logs contain these words more often than ``before``; return the seconds that it took."""
        began = time.monotonic()
        while self.count_log_lines(words) <= before:
            if time.monotonic() - began > WAIT_TIMEOUT:
                raise TimeoutError(f"the logs did not contain this within {WAIT_TIMEOUT} s: {words}")
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    def count_log_lines(self, words: str) -> int:
        """How often the logs of all consumers contain these words so far."""
        return self.logs().count(words)

    def logs(self) -> str:
        """The logs of all consumers so far."""
        return "".join(c.log.read_text(errors="replace") for c in self.consumers if c.log.exists())


#: The exceptions of a session that was lost, and of a server that is not available.
CONNECTION_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


async def apply(dsn: str, modules: Path, *args: str) -> None:
    """Run `iu-listen apply` of the version whose modules are in this folder."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "IU_LISTEN_", "OTEL_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "iu_listen", "apply", "--dsn", dsn, "--no-backup", "a test", *args,
        env=clean | {"PYTHONPATH": str(modules)}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


@asynccontextmanager
async def prepare_environment(
    major: int, home: Path, folder: Path, rng: random.Random, consumers: int, modules: Path | None = None
) -> AsyncIterator[Environment]:
    """Prepare an environment with server, proxy and consumers, without producers.

    Args:
        major: Major version of PostgreSQL.
        home: Data directory; the operating system account of PostgreSQL must have access.
        folder: Directory of the logs.
        rng: Random numbers for the faults.
        consumers: Number of consumers.
        modules: Folder of the modules of another version, whose SQL package and consumers are used; None: of this one.
    """
    options = SERVER_OPTIONS | (SMALL_QUEUE if major >= SINCE_SMALL_QUEUES else {})
    with embedded.running(home, major, durable=False, tcp=True, options=options) as server:
        async with session(server.dsn(), name="storm") as connection:
            if modules:
                await apply(server.dsn(), modules, "--base")
            else:
                await migrate.apply_base(connection)
                await migrate.apply_files(connection, (await package_state(connection)).pending, {}, lambda _: None)
            await connection.execute("set search_path = public")
            await connection.execute(SCHEMA)
        await open_gate(server.dsn())
        async with Proxy(server.tcp_dsn()).running() as path:
            environment = Environment(server, path, home, folder, rng)
            try:
                for number in range(1, consumers + 1):
                    environment.consumers.append(Consumer(f"consumer-{number}", path.dsn, folder))
                    if modules:
                        environment.consumers[-1].environ["PYTHONPATH"] = f"{modules}:{TESTS}"
                    environment.consumers[-1].begin()
                await environment.active_consumer()
                yield environment
            finally:
                for consumer in environment.consumers:
                    await consumer.end()
                if environment._query_session:
                    environment._query_session.terminate()
                environment.cleanup.close()
