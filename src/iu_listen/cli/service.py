"""The commands run and up, which run the service."""

from __future__ import annotations

import os
from typing import Annotated

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import gates
from iu_listen.app import serve
from iu_listen.cli import output
from iu_listen.cli.context import CommandContext, ConnectionOptions, opened
from iu_listen.cli.ending import UNEXPECTED, Ending
from iu_listen.cli.install import apply_on
from iu_listen.flow.ports import Observer
from iu_listen.install import requirements
from iu_listen.install.migrate import package_state, substrate_missing
from iu_listen.install.preflight import ApplyOptions
from iu_listen.model.errors import ConfigurationError
from iu_listen.postgres import queries
from iu_listen.postgres.session import session
from iu_listen.targets import Targets
from iu_listen.targets.python import load
from iu_listen.telemetry.live_spans import span_observer
from iu_listen.telemetry.logs import LogObserver, configure
from iu_listen.telemetry.metrics import metric_observer
from iu_listen.telemetry.otlp.factory import create_collector
from iu_listen.telemetry.sdk_exporters import samples_all
from iu_listen.telemetry.sdk_logs import close_exporters
from iu_listen.telemetry.systemd import SystemdObserver


def register(app: App) -> None:
    """Add these commands."""
    app.command(run)
    app.command(up)


def run(
    *,
    worker: Annotated[str | None, Parameter(help="Which worker to run.")] = None,
    batch_limit: Annotated[int | None, Parameter(help="Most events in one transaction.")] = None,
    catch_up: Annotated[
        float | None, Parameter(help="Longest sleep without any bell, and cadence of the heartbeat, s.")
    ] = None,
    linger: Annotated[float | None, Parameter(help="Silence that ends a busy spell, s.")] = None,
    poll_interval: Annotated[float | None, Parameter(help="Pause between looks where there is no bell, s.")] = None,
    listen: Annotated[bool | None, Parameter(help="LISTEN, or only poll.")] = None,
    listen_dsn: Annotated[str | None, Parameter(help="Direct connection for the bell, past a pooler.")] = None,
    session_timeout: Annotated[float | None, Parameter(help="After how much silence a standby takes over, s.")] = None,
    grace_period: Annotated[
        float | None, Parameter(help="Longest wait for the running batch when asked to stop, s.")
    ] = None,
    log_format: Annotated[str | None, Parameter(help="console, json or auto.")] = None,
    app: Annotated[
        str | None, Parameter(help="Where coroutines are that live routes deliver to: module, or module:attribute.")
    ] = None,
    where: ConnectionOptions | None = None,
) -> int:
    """Run the consumer until SIGTERM or SIGINT. The running batch ends first; a second signal leaves at once.

    It starts against a closed gate, says so once, and works as soon as the gate opens. A lost connection is a log
    line and a retry. Every other setting is an environment variable: docs/reference/settings.md.
    """
    overrides = {
        "worker": worker, "batch_limit": batch_limit, "catch_up": catch_up, "linger": linger,
        "poll_interval": poll_interval, "listen": listen, "listen_dsn": listen_dsn, "session_timeout": session_timeout,
        "grace_period": grace_period,
        "log_format": "json" if where and where.json else log_format, "app": app,
    }  # fmt: skip
    with opened(where, **overrides) as door:
        configure(door.settings.log_format)
        _run_service(door)
    return 0


def _run_service(door: CommandContext) -> None:
    ending = Ending(door.settings.grace_period)
    anyio.run(_check_then_serve, door, ending)
    ending.loop_ended()


async def _check_then_serve(door: CommandContext, ending: Ending) -> None:
    """Check the preconditions, then serve. An error of a check ends the process; later errors lead to retries."""
    async with door.session() as connection:
        await requirements.require_primary(connection)
        await requirements.require_package(connection)
        await requirements.require_worker(connection, door.settings.worker)
        target = (await queries.rows(connection, "target"))[0]
    functions = load(door.settings.app) if door.settings.app else ()
    targets = Targets(functions, os.environ, secrets=door.settings.secrets, allow_private=door.settings.allow_private)
    if door.settings.listen and door.settings.listen_dsn:
        async with session(door.settings.listen_dsn, name="iu-listen cli", deadline=door.settings.deadline):
            pass
    # Created before the exporters of the SDK, so that an invalid OTLP variable is reported once, by this check.
    traces = create_collector(os.environ)
    spans = span_observer(os.environ)
    metrics = metric_observer(os.environ, target["database"])
    observers: list[Observer] = [
        LogObserver(),
        SystemdObserver(),
        ending,
        *([spans] if spans else []),
        *([metrics] if metrics else []),
    ]
    database = f"{target['database']}, PostgreSQL {target['server_version']}"
    code = UNEXPECTED
    try:
        await serve(
            door.settings, observers, database, collector=traces, measuring=metrics is not None, targets=targets,
            batches=samples_all(os.environ),
        )  # fmt: skip
        code = 0
    finally:
        close_exporters((spans, metrics, traces))
        ending.begin(code)


def up(*, log_format: Annotated[str | None, Parameter(help="console, json or auto.")] = None) -> int:
    """Start everything on the embedded server: database, package, open gate, consumer. Ctrl-C ends it.

    The data stays in .iu-listen/. Other commands use the same server meanwhile.
    """
    with opened(None, log_format=log_format) as door:
        if door.server is None:
            raise ConfigurationError(
                "`up` is for the embedded server, and a database is named by the environment",
                "On your own database: iu-listen apply, iu-listen gate open worker, iu-listen run",
            )
        configure(door.settings.log_format)
        anyio.run(_prepare, door)
        output.note(_next_steps(door))
        _run_service(door)
    return 0


async def _prepare(door: CommandContext) -> None:
    """Create the base, apply the package after its preflight checks, and open the worker gate, as far as needed."""
    async with door.session() as connection:
        fresh = bool(await substrate_missing(connection)) or not (await package_state(connection)).complete
        if fresh:
            terms = ApplyOptions(
                dsn=door.settings.dsn, no_backup="embedded database, new", programs=door.programs, base=True
            )
            if await apply_on(door, connection, terms, machine=False):
                raise ConfigurationError(
                    "the embedded database could not be set up",
                    f"Start afresh: remove {door.settings.data_dir}",
                )
            await gates.set_gate(connection, "worker", opened=True)


def _next_steps(door: CommandContext) -> str:
    assert door.server is not None
    return f"""
Everything runs. In another terminal, in this directory (first: . .venv/bin/activate):
  iu-listen emit              write an event
  iu-listen status            gates, backlog, consumers
  iu-listen attempts          what was decided
  iu-listen doctor            anything wrong?
  {door.server.bin}/psql '{door.settings.dsn}'
Ctrl-C stops the consumer and the database; the data stays in {door.settings.data_dir}/.
"""
