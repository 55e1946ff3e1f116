"""The commands run and up, which run the service."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import gates, handlers
from iu_listen.app import serve
from iu_listen.cli import output
from iu_listen.cli.context import CommandContext, ConnectionOptions, open_context
from iu_listen.cli.exit_timer import EXIT_INTERNAL_ERROR, ExitTimer
from iu_listen.cli.install import apply_on
from iu_listen.flow.ports import Observer
from iu_listen.install import requirements
from iu_listen.install.package import missing_base_objects, package_state
from iu_listen.install.preflight import ApplyOptions
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.settings import Settings, unknown_variables
from iu_listen.postgres import queries
from iu_listen.postgres.session import session
from iu_listen.targets import Targets
from iu_listen.targets.python import PythonTarget, load
from iu_listen.telemetry.health_endpoint import ProgressObserver, health_endpoint, prometheus_text
from iu_listen.telemetry.live_spans import span_observer
from iu_listen.telemetry.logs import (
    LogObserver,
    configure,
    log_handlers_without_route,
    log_unknown_variables,
)
from iu_listen.telemetry.metrics import metric_observer
from iu_listen.telemetry.otlp.factory import create_collector
from iu_listen.telemetry.sdk_exporters import samples_all
from iu_listen.telemetry.sdk_logs import close_exporters
from iu_listen.telemetry.systemd import SystemdObserver

LogFormat = Annotated[str | None, Parameter(help="Log format: console, json or auto.")]


def register(app: App) -> None:
    """Add these commands."""
    app.command(run)
    app.command(up)


def run(
    *,
    worker: Annotated[str | None, Parameter(help="Name of the worker to run.")] = None,
    batch_limit: Annotated[int | None, Parameter(help="Largest number of events in one batch.")] = None,
    catch_up: Annotated[
        float | None, Parameter(help="Interval of the catch-up poll and of the heartbeat, in seconds.")
    ] = None,
    linger: Annotated[
        float | None, Parameter(help="Time without events after which a busy consumer becomes idle, in seconds.")
    ] = None,
    poll_interval: Annotated[
        float | None, Parameter(help="Interval of polling if notifications are not available, in seconds.")
    ] = None,
    listen: Annotated[bool | None, Parameter(help="Use notifications (LISTEN), or only poll.")] = None,
    listen_dsn: Annotated[
        str | None, Parameter(help="Connection string of the listener session, if --dsn goes through a pooler.")
    ] = None,
    session_timeout: Annotated[
        float | None,
        Parameter(help="Idle time after which the server ends a session and a standby takes over, in seconds."),
    ] = None,
    grace_period: Annotated[float | None, Parameter(help="Grace period of a graceful shutdown, in seconds.")] = None,
    log_format: LogFormat = None,
    http: Annotated[
        str | None,
        Parameter(help="Address of the HTTP endpoint with /livez, /readyz and /metrics: PORT, or HOST:PORT."),
    ] = None,
    app: Annotated[
        str | None,
        Parameter(help="Location of the coroutines to which live routes deliver: module, or module:attribute."),
    ] = None,
    until_idle: Annotated[
        bool,
        Parameter(help="End when every event is routed and no delivery can begin.", negative=()),
    ] = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Run the consumer until SIGTERM or SIGINT. The running batch is completed; a second signal ends it at once.

    If a gate is closed, the consumer starts nevertheless, reports the gate once, and works as soon as it opens. A lost
    connection is logged and retried. Every other setting is an environment variable: docs/reference/settings.md.
    """
    overrides: dict[str, Any] = {
        "worker": worker, "batch_limit": batch_limit, "catch_up": catch_up, "linger": linger,
        "poll_interval": poll_interval, "listen": listen, "listen_dsn": listen_dsn, "session_timeout": session_timeout,
        "grace_period": grace_period,
        "log_format": "json" if options and options.json else log_format, "http": http, "app": app,
    }  # fmt: skip
    with open_context(options, **overrides) as context:
        configure(context.settings.log_format)
        log_unknown_variables(unknown_variables(os.environ, context.settings))
        run_service(context, until_idle=until_idle)
    return 0


def run_service(
    context: CommandContext, *, until_idle: bool = False, functions: Sequence[PythonTarget] | None = None
) -> None:
    """Run the consumer with the settings of the context until it is asked to stop, or there is nothing to do.

    Args:
        context: The context of the command.
        until_idle: End when there is nothing to do.
        functions: The coroutines and handlers for live routes. Default: those of the setting ``app``.
    """
    exit_timer = ExitTimer(context.settings.grace_period)
    anyio.run(_check_then_serve, context, exit_timer, until_idle, functions)
    exit_timer.loop_ended()


async def _check_then_serve(
    context: CommandContext, exit_timer: ExitTimer, until_idle: bool, functions: Sequence[PythonTarget] | None
) -> None:
    """Check the preconditions, then serve. An error of a check ends the process; later errors lead to retries."""
    app = context.settings.app
    if functions is None:
        functions = load(app) if app else ()
    async with context.session(bounded=True) as connection:
        await requirements.require_primary(connection)
        await requirements.require_package(connection)
        await requirements.require_worker(connection, context.settings.worker)
        if until_idle and (closed := await gates.closed_gates(connection)):
            raise Refused(
                f"with --until-idle nothing would be done: closed gates: {', '.join(closed)}",
                f"Open it first: iu-listen gate open {closed[0]}",
            )
        target = (await queries.rows(connection, "target"))[0]
        log_handlers_without_route(await handlers.without_route(connection, functions), app or "MODULE")
    targets = Targets(
        functions, os.environ, secrets=context.settings.secrets, allow_private=context.settings.allow_private
    )
    if context.settings.listen and context.settings.listen_dsn:
        async with session(context.settings.listen_dsn, name="iu-listen cli", deadline=context.settings.deadline):
            pass
    # Created before the exporters of the SDK, so that an invalid OTLP variable is reported once, by this check.
    traces = create_collector(os.environ)
    spans = span_observer(os.environ)
    metrics = metric_observer(os.environ, target["database"])
    observers: list[Observer] = [
        LogObserver(),
        SystemdObserver(),
        exit_timer,
        *([spans] if spans else []),
        *([metrics] if metrics else []),
    ]
    database = f"{target['database']}, PostgreSQL {target['server_version']}"
    code = EXIT_INTERNAL_ERROR
    try:
        with _endpoint(context.settings, observers):
            await serve(
                context.settings, observers, database, collector=traces, measuring=metrics is not None,
                targets=targets, batches=samples_all(os.environ), until_idle=until_idle,
            )  # fmt: skip
        code = 0
    finally:
        close_exporters((spans, metrics, traces))
        exit_timer.begin(code)


def _endpoint(settings: Settings, observers: list[Observer]) -> AbstractContextManager[object]:
    """The HTTP endpoint of the setting ``http``, whose observer is added to the observers."""
    if not settings.http:
        return nullcontext()
    progress = ProgressObserver(settings)
    observers.append(progress)
    return health_endpoint(settings.http, progress, prometheus_text(os.environ))


def up(*, log_format: LogFormat = None) -> int:
    """Start a complete service on the embedded server: database, package, open gate, consumer. Ctrl-C ends it.

    The data stays in .iu-listen/, and other commands use the same server meanwhile.
    """
    with open_context(None, create=True, log_format=log_format) as context:
        if context.server is None:
            raise ConfigurationError(
                "`up` uses the embedded server, but the environment names a database",
                "On that database use: iu-listen apply, iu-listen gate open worker, iu-listen run",
            )
        configure(context.settings.log_format)
        anyio.run(_prepare, context)
        output.note(_next_steps(context))
        run_service(context)
    return 0


async def _prepare(context: CommandContext) -> None:
    """Create the base, apply the package after its preflight checks, and open the worker gate, as far as needed."""
    async with context.session() as connection:
        fresh = bool(await missing_base_objects(connection)) or not (await package_state(connection)).complete
        if fresh:
            apply_options = ApplyOptions(
                dsn=context.settings.dsn, no_backup="embedded database, new", programs=context.programs, base="iu_core"
            )
            if await apply_on(context, connection, apply_options, machine=False):
                raise ConfigurationError(
                    "the embedded database could not be set up",
                    f"Remove {context.settings.data_dir} to begin with a new one.",
                )
            await gates.set_gate(connection, "worker", opened=True)


def _next_steps(context: CommandContext) -> str:
    assert context.server is not None
    return f"""
The service is running. In another terminal, in this directory (first: . .venv/bin/activate):
  iu-listen emit              write an event
  iu-listen status            health, gates, backlog, consumers
  iu-listen attempts          decisions about events
  iu-listen doctor            possible faults
  {context.server.bin}/psql '{context.settings.dsn}'
Ctrl-C stops the consumer and the database; the data stays in {context.settings.data_dir}/.
"""
