"""Starts commands in forked processes that have already imported `iu_listen`.

A short command spends most of its time on imports, and the tests run hundreds of commands. So one process, the fork server,
imports the modules once, and each command is a fork of that process with its own environment, directory and streams:

    tests ── arguments, streams ──► fork_server ── fork ──► keeper ── fork ──► command
      ▲                                                   │ waits
      └──────────── its process id, its exit code ────────┘

The result is the same as in a new process, because a command is only forked if its environment cannot change the result
of an import: see ``may_be_born``. Run with the number of a socket, this file is the fork server.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from typing import Any, Final

#: Prefixes of variables that a command reads when it runs; other variables may be read by imports.
READ_LATE: Final = ("IU_LISTEN_", "OTEL_", "PG")
#: Exceptions: variables with these prefixes that are read by imports; a test of the fork server looks for more of them.
READ_BY_IMPORTS: Final = frozenset({"OTEL_PYTHON_CONTEXT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"})
#: What the fork server imports: the commands, and modules that most of them import while they run.
IMPORTED: Final = (
    "iu_listen.cli", "anyio._backends._asyncio", "cyclopts.help", "docstring_parser", "rich.markdown", "rich._emoji_codes",
)  # fmt: skip
#: Maximum length of an order, in bytes.
LONGEST: Final = 1 << 20

_one_at_a_time = threading.Lock()


def may_be_born(env: Mapping[str, str]) -> bool:
    """Whether no import reads a variable of this environment, so that a forked command behaves like a new process."""
    return all(name.startswith(READ_LATE) and name not in READ_BY_IMPORTS for name in env)


# -- in the tests ------------------------------------------------------------------------------------------------


@cache
def _nursery(process: int) -> socket.socket:
    ours, theirs = socket.socketpair()
    # Pipes, as a separate command would have them: Python examines its standard streams only once.
    fork_server = subprocess.Popen(
        [sys.executable, "-P", __file__, str(theirs.fileno())],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", "TERM": "xterm"},
        pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    theirs.close()

    @atexit.register
    def end() -> None:
        ours.close()
        fork_server.communicate()

    return ours


def born(args: Sequence[str], env: Mapping[str, str], cwd: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as subprocess.run does.

    Args:
        args: The arguments after `iu-listen`.
        env: Its complete environment.
        cwd: Its directory.
        timeout: Its longest duration, in seconds.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        pipes = [os.pipe() for _ in range(3)]
        read = {stack.enter_context(open(ours, "rb", buffering=0)): b"" for ours, _ in pipes}  # noqa: PTH123
        out, err, told = read
        with _one_at_a_time:
            order = json.dumps({"args": args, "env": dict(env), "cwd": cwd}).encode()
            socket.send_fds(_nursery(os.getpid()), [order], [0, *(theirs for _, theirs in pipes)])
            for _, theirs in pipes:
                os.close(theirs)
            read[told] = told.read(16)
        assert read[told], "the fork server is gone"
        until = time.monotonic() + timeout
        for stream in read:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready:
                os.kill(int(read[told].split()[0]), signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(args), timeout, read[out], read[err])
            for key, _ in ready:
                stream: Any = key.fileobj
                if more := stream.read(1 << 16):
                    read[stream] += more
                else:
                    selector.unregister(stream)
    said = [io.TextIOWrapper(io.BytesIO(read[stream]), encoding="utf-8").read() for stream in (out, err)]
    return subprocess.CompletedProcess(list(args), int(read[told].split()[1]), *said)


# -- in the fork server ----------------------------------------------------------------------------------------------


def _order(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return the next command, in the process that becomes it; None in the fork server, when the socket is closed."""
    # The fork_server does not wait for keepers that have ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        order, streams, _, _ = socket.recv_fds(control, LONGEST, 4)
        if not order:
            return None
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            *streams, told = streams
            if (command := os.fork()) == 0:
                os.close(told)
                return json.loads(order), streams
            # The keeper closes its copies of the streams, so that they end when the command and its children end.
            os.closerange(0, 3)
            for stream in streams:
                os.close(stream)
            os.write(told, f"{command} ".encode())
            _, status = os.waitpid(command, 0)
            os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        for stream in streams:
            os.close(stream)


def _become(order: dict[str, Any], streams: list[int]) -> None:
    """Continue as `python -m iu_listen` would."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    sys.path.insert(0, order["cwd"])
    sys.argv[1:] = order["args"]
    try:
        runpy.run_module("iu_listen", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int):
            _end(end.code)
        raise


def _end(code: int) -> None:
    """End as the interpreter would, but leave the objects to the kernel.

    To free them one by one would copy each page that the process shares with the fork server: a third of the time of a
    short command. If a stream cannot be written, this returns, and the interpreter reports it.
    """
    # The interpreter ends in this order; without the first step it would not wait for threads.
    threading._shutdown()
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for module in IMPORTED:
        importlib.import_module(module)
    # The garbage collector of each command skips the existing objects, so their memory pages are not copied.
    gc.freeze()
    if (found := _order(socket.socket(fileno=int(sys.argv[1])))) is not None:
        _become(*found)
