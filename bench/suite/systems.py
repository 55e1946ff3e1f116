"""The systems that the suite measures, as a table: how events are written, how a worker runs, and when work is done.

Each system has its own database on one server. The settings of a peer are those that its documentation advises, and the
column `settings` names the source.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"
#: The directory in which the Makefile installs graphile-worker.
NODE = Path(sys.prefix) / "node"


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        name: Its name in the results.
        kind: ``ours``, ``peer`` or ``bound``.
        package: Its package; for Node.js with the prefix ``npm:``; empty if it cannot be installed.
        settings: The settings of its worker, and who advises them.
        enqueue: Statement that writes the events with the numbers ``$1`` to ``$2``, in one transaction.
        clear: Statements that delete all events and their history; empty: its database is made anew.
        unfinished: Query: are some of ``$1`` events not settled yet?
        share: The part of a backlog that a slow system gets, so that a round takes seconds and not minutes.
    """

    name: str
    kind: str
    package: str
    settings: str
    enqueue: str = ""
    clear: str = ""
    unfinished: str = ""
    share: float = 1.0

    @property
    def database(self) -> str:
        return "bench_" + self.name.replace("-", "_")

    def worker(self, step: str, dsn: str, purpose: str) -> list[str]:
        """The command that installs its schema or runs its worker; the purpose is ``latency`` or ``throughput``."""
        if self.kind == "ours":
            return [sys.executable, "-m", "iu_listen", "run", "--dsn", dsn, "--app", "bench_target"]
        if self.package.startswith("npm:"):
            return ["node", str(WORKERS / "run_graphile.cjs"), step, dsn, purpose]
        module = "bound" if self.kind == "bound" else self.name.partition("-")[0]
        return [sys.executable, str(WORKERS / f"run_{module}.py"), step, dsn, purpose]

    def version(self) -> str:
        """Version of its package; empty if there is none. Raises Missing if it is not installed."""
        if self.kind == "bound":
            return ""
        if not self.package:
            raise Missing(self.settings)
        if self.package.startswith("npm:"):
            if not shutil.which("node"):
                raise Missing("Node.js is not installed")
            return _version_of_node_module(self.package.removeprefix("npm:"))
        try:
            return version(self.package)
        except PackageNotFoundError:
            raise Missing(f"the package {self.package} is not installed") from None


class Missing(Exception):
    """A system cannot be measured; the text is the reason."""


def _version_of_node_module(name: str) -> str:
    try:
        return json.loads((NODE / "node_modules" / name / "package.json").read_text())["version"]
    except FileNotFoundError:
        raise Missing(f"the package {name} of npm is not installed") from None


def available(wanted: Callable[[System], bool]) -> tuple[dict[System, str], dict[str, str]]:
    """The wanted systems with their versions; and the others by name, with the reason."""
    found, missing = {}, {}
    for system in filter(wanted, SYSTEMS):
        try:
            found[system] = system.version()
        except Missing as reason:
            missing[system.name] = str(reason)
    return found, missing


OURS = System(
    name="iu-listen",
    kind="ours",
    package="iu-listen",
    settings="`iu-listen run` with the defaults; a route with `concurrency` 100 to a coroutine.",
    enqueue="""
        select count(fn_iu_emit_event('version_applied', 'bench/' || n, gen_random_uuid(), 'bench',
                                      jsonb_build_object('n', n)))
          from generate_series($1::int, $2::int) n""",
    clear="""
        truncate event_outbox, iu_route_attempt, iu_route_delivery, iu_consumer_heartbeat;
        update iu_route_worker_cursor set total_seen = 0""",
    unfinished="""
        select (select total_seen from iu_route_worker_cursor) < $1::int or exists (select from iu_route_delivery)""",
)
BOUND = System(
    name="bound",
    kind="bound",
    package="",
    settings="NOTIFY, then one durable INSERT, then the call; for a backlog one INSERT for 1 000 calls.",
    enqueue="""
        with written as (insert into event (n) select generate_series($1::int, $2::int) returning n)
        select count(pg_notify('event', n::text)) from written""",
    clear="truncate event, attempt",
    unfinished="select (select count(*) from attempt) < $1::int",
)
SYSTEMS = (
    BOUND,
    OURS,
    System(
        name="pgqueuer",
        kind="peer",
        package="pgqueuer",
        settings="Its guide on performance tuning: uvloop, a pool, `batch_size` 100 and `max_concurrent_tasks` twice "
        "that for throughput; 10 and 20 for single events.",
        # The statement of its class Queries, without deduplication.
        enqueue="""
            with inserted as (
                insert into pgqueuer (priority, entrypoint, payload, execute_after, status)
                select 0, 'noop', convert_to(n::text, 'utf8'), now(), 'queued'
                  from generate_series($1::int, $2::int) n
                returning id, entrypoint, priority)
            insert into pgqueuer_log (job_id, status, entrypoint, priority)
            select id, 'queued', entrypoint, priority from inserted""",
        clear="truncate pgqueuer, pgqueuer_log",
        unfinished="select $1::int > 0 and exists (select from pgqueuer)",
    ),
    System(
        name="procrastinate",
        kind="peer",
        package="procrastinate",
        settings="Its guide on concurrency: asynchronous tasks in one worker, `concurrency` 100 for throughput and 10 "
        "for single events; `listen_notify` on, as by default.",
        enqueue="""
            select procrastinate_defer_jobs_v1(array_agg(
                row('default', 'noop', 0, null, null, jsonb_build_object('n', n), null)::procrastinate_job_to_defer_v1))
              from generate_series($1::int, $2::int) n""",
        clear="truncate procrastinate_jobs cascade",
        unfinished="""
            select $1::int > 0 and exists (select from procrastinate_jobs where status in ('todo', 'doing'))""",
        share=0.1,
    ),
    System(
        name="graphile-worker",
        kind="peer",
        package="npm:graphile-worker",
        settings="Its page on performance: `localQueue` of 500 and batched completion for throughput, with "
        "`concurrentJobs` 100; for single events 10, without the local queue.",
        enqueue="""
            select count(*) from graphile_worker.add_jobs(array(
                select row('noop', json_build_object('n', n), null, null, null, null, null, null)::graphile_worker.job_spec
                  from generate_series($1::int, $2::int) n))""",
        clear="truncate graphile_worker._private_jobs",
        unfinished="select $1::int > 0 and exists (select from graphile_worker._private_jobs)",
    ),
    System(
        name="awa",
        kind="peer",
        package="awa-pg",
        settings="Its README and its reference of settings: the queue storage, one queue with 100 workers for "
        "throughput and 10 for single events, a pool of 20.",
        # The statement of awa.bridge.
        enqueue="""
            select count(*) from generate_series($1::int, $2::int) n, awa.insert_job_compat(
                'noop', 'bench', jsonb_build_object('n', n), 'available'::awa.job_state, 2::smallint, 25::smallint,
                null::timestamptz, '{}'::jsonb, '{}'::text[], null, null::bit(8), null::bytea)""",
        unfinished="select (select count(*) from awa.jobs where state = 'completed') < $1::int",
        share=0.2,
    ),
    System(
        name="faststream-outbox",
        kind="peer",
        package="faststream-outbox",
        settings="Its README and its page on performance: the driver asyncpg, which listens; 10 workers, and for "
        "throughput `fetch_batch_size` 500 and `terminal_flush_batch_size` 100.",
        # The statement of its OutboxBroker.publish.
        enqueue="""
            with written as (
                insert into outbox (queue, payload, headers)
                select 'noop', convert_to(n::text, 'utf8'), '{"content-type": "application/json"}'
                  from generate_series($1::int, $2::int) n
                returning queue)
            select count(pg_notify('outbox_outbox', queue)) from written""",
        clear="truncate outbox",
        unfinished="select $1::int > 0 and exists (select from outbox)",
    ),
    System(
        name="dbos",
        kind="peer",
        package="dbos",
        settings="Its reference of queues: `worker_concurrency` 100, and `polling_interval_sec` 0.01 instead of 1, "
        "because its queues poll.",
        enqueue="""
            select count(dbos.enqueue_workflow('noop', 'bench', array[to_json(n)], application_name => 'bench'))
              from generate_series($1::int, $2::int) n""",
        clear="truncate dbos.workflow_status cascade",
        unfinished="""
            select $1::int > 0 and exists (
                select from dbos.workflow_status where status in ('ENQUEUED', 'PENDING') and queue_name = 'bench')""",
        share=0.1,
    ),
    System(
        name="pgque",
        kind="peer",
        package="",
        settings="the registry has only its client pgque-py, and not the SQL file of the server",
    ),
)
