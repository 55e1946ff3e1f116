"""The command line: it parses arguments, calls functions and prints results. It contains no SQL and no decisions.

It also translates errors to exit codes; HELP lists them.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final

from cyclopts import App, CycloptsError, Group, Parameter

from iu_listen.cli import (
    adopt,
    attempts,
    completeness,
    completion,
    config,
    cursor,
    dead_letter,
    dead_letter_replay,
    delivery,
    demo,
    dev,
    doctor,
    emit,
    event_type,
    gate,
    health,
    init,
    install,
    output,
    retention,
    route,
    route_add,
    route_policy,
    service,
    sql,
    status,
    streams,
    traces,
    worker,
)
from iu_listen.cli.exit_timer import EXIT_INTERNAL_ERROR
from iu_listen.model.errors import IuListenError
from iu_listen.model.version import VERSION
from iu_listen.telemetry.logs import log_error

HELP = """Listen to a PostgreSQL outbox: route every committed event exactly once, and record each decision.

To begin, run `iu-listen dev --app MODULE` with your handlers, or `iu-listen demo`; neither needs a database.
On your own database use `init` (beside IU Core: `apply`), `route sync`, `gate open`, `route live`, `run`, and `doctor`.

The database is that of --dsn, else of IU_LISTEN_DSN, else of the PG* variables, else an embedded server in .iu-listen/.

Exit codes: 0 success; 1 check failed or request refused; 2 wrong usage or configuration; 3 database not reachable;
4 answer could not be written; 70 internal error."""

#: The groups of the list of commands, in its order, which is that of a first use.
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "Try it out": ("dev", "emit", "attempts", "trace", "demo", "up"),
    "Set up a database": ("init", "apply", "verify", "probe", "sql", "rollback"),
    "Define what is delivered": ("event-type", "route", "gate", "worker", "config", "adopt"),
    "Run and observe": ("run", "status", "health", "doctor", "trace-export"),
    "Deliver and repair": ("delivery", "dead-letter", "completeness", "cursor"),
    "Maintain": ("retention", "completion"),
}
#: Exit code of an answer that could not be written.
EXIT_ANSWER_LOST = 4


def _default(value: object) -> str | None:
    """The text of a default in a help text; None: the default is not shown, because it is empty or False."""
    return None if value in (None, "") or value is False else str(value)


# Interrupts are handled in _run(): cyclopts would return the exit code 130 for every signal.
app: App = App(
    name="iu-listen",
    help=HELP,
    version=VERSION,
    help_format="markdown",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(show_default=_default),
)
for _group in (
    service,
    dev,
    demo,
    init,
    install,
    sql,
    status,
    health,
    doctor,
    attempts,
    completeness,
    gate,
    event_type,
    route,
    route_add,
    route_policy,
    worker,
    config,
    adopt,
    delivery,
    dead_letter,
    dead_letter_replay,
    cursor,
    retention,
    traces,
    emit,
    completion,
):
    _group.register(app)
for _title, _names in GROUPS.items():
    _section = Group.create_ordered(_title)
    for _position, _command in enumerate(_names):
        app[_command].group, app[_command].sort_key = _section, _position
app["--help"].group = app["--version"].group = Group.create_ordered("Options")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, and return the exit code.

    Args:
        argv: The arguments; None: those of the process.
    """
    streams.install()
    code = _run(list(sys.argv[1:] if argv is None else argv))
    lost = streams.answer_lost()
    if lost is not None:
        output.problem(f"the answer could not be written: {lost.strerror}", "The command itself was completed.")
    return EXIT_ANSWER_LOST if lost is not None and code == 0 else code


def _run(argv: list[str]) -> int:
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler)
        handler(number, frame)

    # SIGTERM acts like Ctrl-C: the command ends in order. `run` and `up` replace the handler while they serve. While an
    # event loop runs, its own handler of SIGINT cancels the command. An exception that is raised here could interrupt
    # the C code of the driver, which then loses answers or crashes. SIGINT is set explicitly, because a shell starts
    # background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    try:
        code = app(
            argv,
            exit_on_error=False,
            print_error=True,
            console=output.help_out(),
            error_console=output.usage_err(),
            result_action="return_value",
        )
    except CycloptsError as usage_error:
        _answer_error(argv, str(usage_error), "", 2)
        return 2
    except KeyboardInterrupt:
        return 143 if terminated else 130
    except (Exception, BaseExceptionGroup) as raised:  # noqa: BLE001 the last resort of a command
        error = _ours(raised)
        if error is None:
            return _internal_error(raised, argv)
        if not _answer_error(argv, error.message, error.hint, error.exit_code):
            output.problem(error.message, error.hint)
        return error.exit_code
    return code if isinstance(code, int) else 0


def _ours(raised: BaseException) -> IuListenError | None:
    """The first IuListenError, also out of an exception group; None: there is none."""
    while isinstance(raised, BaseExceptionGroup):
        raised = next(
            (e for e in raised.exceptions if isinstance(e, (IuListenError, BaseExceptionGroup))), raised.exceptions[0]
        )
    return raised if isinstance(raised, IuListenError) else None


def _internal_error(raised: BaseException, argv: list[str]) -> int:
    """Report an internal error with its traceback on stderr, and return the exit code 70.

    The text of the exception is not shown, because it may contain a secret or a payload.
    """
    while isinstance(raised, BaseExceptionGroup):
        raised = raised.exceptions[0]
    frames = "".join(traceback.format_tb(raised.__traceback__))
    output.note(f"Traceback (most recent call last):\n{frames}{type(raised).__name__}")
    output.problem(
        f"internal error: {type(raised).__name__}",
        "This is an internal error of iu-listen. Please report it with the traceback above.",
    )
    _answer_error(argv, f"internal error: {type(raised).__name__}", "", EXIT_INTERNAL_ERROR)
    return EXIT_INTERNAL_ERROR


def _answer_error(argv: list[str], message: str, hint: str, code: int) -> bool:
    """With --json, write the error as the answer, or for ``run`` as a line of its log.

    Returns:
        Whether the error needs no further output.
    """
    words = argv[: argv.index("--")] if "--" in argv else argv
    if words[:1] == ["run"]:
        if "--json" not in words and os.environ.get("IU_LISTEN_LOG_FORMAT") != "json":
            return False
        log_error(message, hint, code)
        return True
    if "--json" in words and not output.answered():
        output.as_json({"error": {"message": message, "hint": hint, "exit_code": code}})
    return False
