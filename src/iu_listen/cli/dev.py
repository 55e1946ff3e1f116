"""The command dev: run an application's handlers on the embedded server while they are being written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import gates, routes
from iu_listen.admin.handlers import add_parts, missing_parts, undeclared_routes
from iu_listen.cli import output
from iu_listen.cli.context import CommandContext, open_context
from iu_listen.cli.install import applied
from iu_listen.cli.service import run_service
from iu_listen.install.package import missing_base_objects, package_state
from iu_listen.install.preflight import ApplyOptions
from iu_listen.model.delivery import Delivery
from iu_listen.model.errors import ConfigurationError, IuListenError
from iu_listen.model.settings import unknown_variables
from iu_listen.model.user_code import user_traceback
from iu_listen.targets.handlers import Handler
from iu_listen.targets.python import PythonTarget, ReportedTarget, load
from iu_listen.telemetry.logs import configure

#: Longest wait for the end of the consumer before it is killed, in seconds.
STOP_TIMEOUT = 15.0
#: Interval at which dev looks whether the consumer still runs, in seconds.
CHECK_INTERVAL = 0.5
#: The reason of the changes of routes, as recorded in iu_delivery_change.
WHY = "iu-listen dev"
#: The program of the process that runs the consumer; a new process imports the handlers anew after each change.
CONSUMER = "import sys; from iu_listen.cli.dev import consume; sys.exit(consume(sys.argv[1]))"


def register(app: App) -> None:
    """Add this command."""
    app.command(dev)


def dev(
    *,
    app: Annotated[str, Parameter(help="Location of the handlers: module, or module:attribute.")],
    reload: Annotated[bool, Parameter(help="Begin again after a change of a Python file in this directory.")] = True,
) -> int:
    """Run the handlers of a module on the embedded server, with all gates open. For development only.

    The command creates the database, and the event types and routes of the functions with @on, makes these routes live,
    and runs the consumer until Ctrl-C. The data stays in .iu-listen/, and other commands use the same server.
    """
    with open_context(None, create=True) as context:
        if context.server is None:
            raise ConfigurationError(
                "`dev` opens every gate, so it works on the embedded server only, and the environment names a database",
                "Unset IU_LISTEN_DSN and the PG* variables. On that database use: route sync, route live, run",
            )
        for name, hint in unknown_variables(os.environ, context.settings).items():
            output.note(f"Unknown environment variable {name}: it has no effect. {hint}")
        anyio.run(_prepare, context)
        output.note(f"Database, for your application: {context.settings.dsn}")
        changes = _changes() if reload else None
        while True:
            with _consumer(app) as process:
                if changes is None:
                    return process.wait()
                try:
                    changed = _next_change(changes, process)
                except (KeyboardInterrupt, StopIteration):
                    return 0
            output.note(f"{changed} has changed; beginning again.")


def consume(app: str) -> int:
    """Add the event types and live routes of the handlers, and run the consumer; for the process that dev starts."""
    with open_context(None, app=app, log_format="console") as context:
        configure(context.settings.log_format)
        try:
            targets = load(app)
            handlers = [target for target in targets if isinstance(target, Handler)]
            for code in anyio.run(_open_routes, context, targets, handlers):
                output.note(f"Route {code} is a dry run now: {app} declares no handler with this name.")
            output.note(_ready(targets, handlers))
            run_service(context, functions=[ReportedTarget(target, _report) for target in targets])
        except IuListenError as error:
            if error.__cause__ is not None:
                output.trace("", user_traceback(error.__cause__))
            output.problem(error.message, error.hint)
            return 1
    return 0


def _ready(targets: list[PythonTarget], handlers: list[Handler]) -> str:
    """The line for a consumer that is about to begin, with a command that writes an event for the first handler."""
    event_type = handlers[0].event_type if handlers else "EVENT_TYPE"
    names = ", ".join(target.name for target in targets)
    return f"Ready: {names}. In another terminal, in this directory: iu-listen emit --type {event_type}"


def _report(delivery: Delivery, error: BaseException) -> None:
    """Print why an attempt failed."""
    output.trace(
        f"{delivery.route} failed: event {delivery.event.id}, attempt {delivery.attempt}", user_traceback(error)
    )


async def _prepare(context: CommandContext) -> None:
    """Create the base and the package, and open every gate, as far as needed."""
    async with context.session() as connection:
        if await missing_base_objects(connection) or (await package_state(connection)).pending:
            options = ApplyOptions(
                dsn=context.settings.dsn, no_backup="embedded database", programs=context.programs, base="neutral"
            )
            answer = await applied(context, connection, options, quiet=True)
            if not answer["pass"]:
                found = next(gate for gate in answer["gates"] if not gate["pass"])
                raise ConfigurationError(
                    f"the embedded database could not be set up: {found['evidence']}",
                    f"Remove {context.settings.data_dir} to begin with a new one.",
                )
        for gate in ("master", "worker", "delivery"):
            await gates.set_gate(connection, gate, opened=True)


async def _open_routes(context: CommandContext, targets: list[PythonTarget], handlers: list[Handler]) -> list[str]:
    """Add the event types and routes of the handlers, and make their routes live and those of other handlers dry runs.

    Returns:
        The routes that became dry runs.
    """
    async with context.session() as connection:
        await add_parts(connection, await missing_parts(connection, handlers))
        for handler in handlers:
            if (await routes.switches(connection, handler.name))["listed"]:
                continue
            await routes.route_live(connection, handler.name, live=True, why=WHY, actor=None)
        undeclared = await undeclared_routes(connection, {target.name for target in targets})
        for code in undeclared:
            await routes.route_live(connection, code, live=False, why=f"{WHY}: no such handler", actor=None)
        return undeclared


@contextmanager
def _consumer(app: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the consumer in a process of its own during the block."""
    process = subprocess.Popen([sys.executable, "-c", CONSUMER, app])
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _next_change(changes: Iterator[str], process: subprocess.Popen[bytes]) -> str:
    """Wait for the next change of a file, and return its name. The end of the consumer is reported once meanwhile."""
    ended = False
    while not (changed := next(changes)):
        if not ended and process.poll() is not None:
            ended = True
            output.note("The consumer has ended. It begins again after a change of a Python file.")
    return changed


def _changes() -> Iterator[str]:
    """The names of changed Python files, one after each change; empty every CHECK_INTERVAL without a change.

    Raises:
        ConfigurationError: The extra ``dev`` is not installed.
    """
    try:
        from watchfiles import PythonFilter, watch  # noqa: PLC0415 an extra
    except ImportError as error:
        raise ConfigurationError(
            "reloading requires the extra dev, which is not installed",
            "pip install 'iu-listen[dev]', or use --no-reload.",
        ) from error
    pause = round(1000 * CHECK_INTERVAL)
    for found in watch(
        Path.cwd(), watch_filter=PythonFilter(), raise_interrupt=True, rust_timeout=pause, yield_on_timeout=True
    ):
        yield os.path.relpath(min(path for _, path in found)) if found else ""
