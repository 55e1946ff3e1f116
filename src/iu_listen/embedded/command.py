"""A command's use of the shared server: it starts a keeper if none runs, and the last command waits for the end."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from iu_listen.embedded import keeper as keeper_script
from iu_listen.embedded.keeper import (
    RESERVED_SETTINGS,
    EmbeddedError,
    Record,
    Server,
    command_line,
    file_beside,
    file_lock,
    os_error_message,
    stop_and_clean_up,
)
from iu_listen.embedded.places import (
    DEFAULT_MAJOR,
    binaries,
    choose_account,
    data_directory,
    default_root,
    reachable_binaries,
    trusted_directory,
)

DEFAULT_SETTINGS = {
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "wal_compression": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a ",
    "listen_addresses": "",
}
DURABLE_SETTINGS = {"fsync": "on", "full_page_writes": "on"}
FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off"}
LEAVE_TIMEOUT = 15  # longest time that the last command waits for the end of the server, in seconds


@contextmanager
def running(
    root: Path | None = None,
    major: int = DEFAULT_MAJOR,
    *,
    durable: bool = True,
    tcp: bool = False,
    options: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Context that uses an embedded PostgreSQL server, which runs while at least one process uses it.

    ```python
    with running(Path("data"), durable=False) as server:
        connect(server.dsn("postgres"))
    ```

    Args:
        root: Directory of the data; it is created if it does not exist. Default: `.iu-listen` in the current directory,
            or the directory that `IU_LISTEN_DATA_DIR` names.
        major: Major version of PostgreSQL: 16 or 18.
        durable: False: without fsync, which is faster, but a power failure may lose data.
        tcp: True: listen also on 127.0.0.1, with a password; `server.tcp_dsn(database)` contains it.
        options: Further settings of PostgreSQL, as text by name.

    Yields:
        The server; `server.dsn(database)` is the connection string of a database, through a unix socket.

    Raises:
        EmbeddedUnavailable: The wheel with the binaries is not installed, or lacks the major version.
        EmbeddedError: The server cannot start, or is in use with other settings; the message names a remedy.
    """
    demands = (DURABLE_SETTINGS if durable else {}) | dict(options or {})
    if tcp:
        demands["listen_addresses"] = "127.0.0.1"
    if refused := demands.keys() & set(RESERVED_SETTINGS):
        raise EmbeddedError(
            f"these settings are chosen by the embedded PostgreSQL and cannot be passed: {', '.join(sorted(refused))}"
        )
    for name, value in demands.items():
        if not re.fullmatch(r"[A-Za-z_][\w.]*", name, re.ASCII) or "\0" in value:
            raise EmbeddedError(f"invalid name or value of a PostgreSQL setting: {name!r} = {value!r}")
    original = binaries(major)
    with _embedded_errors():
        root = trusted_directory((root or default_root()).absolute().resolve())
        account = choose_account(root / f"pg{major}")
        data = data_directory(root, major, account)
        bin = reachable_binaries(original, major, account)
        users = os.open(file_beside(data, ".users"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        with _embedded_errors():
            fcntl.flock(users, fcntl.LOCK_SH)
            plan = {"bin": str(bin), "major": major, "account": account, "durable": durable}
            plan["settings"] = DEFAULT_SETTINGS | FAST_SETTINGS | demands  # `demands` come last
            server = _join_server(data, plan, demands)
        yield server
    finally:
        os.close(users)
        _leave_server(data)


@contextmanager
def _embedded_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedError(os_error_message(error)) from error


def _join_server(data: Path, plan: Mapping[str, object], demands: Mapping[str, str]) -> Server:
    with ExitStack() as locks:
        starting = locks.enter_context(file_lock(file_beside(data, ".start"), fcntl.LOCK_EX))
        try:
            alive = locks.enter_context(file_lock(file_beside(data, ".keeper"), fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            pass  # a keeper is running and has answered: until then it holds the lock `start`
        else:
            _start_keeper(data, {**plan, "locks": (starting, alive)}, (starting, alive))
        record = Record.load(data)
        if record is None or str(data) not in command_line(record.keeper):
            raise EmbeddedError(
                f"{data} is in use by a process that is not visible here, for example in a container; end that process,"
                " or set another IU_LISTEN_DATA_DIR"
            )
        differing = {name for name, value in demands.items() if record.settings.get(name) != value}
        if differing:
            raise EmbeddedError(
                f"{data} is in use with other values of {', '.join(sorted(differing))}; wait until the commands"
                " that use it have ended, or set another IU_LISTEN_DATA_DIR"
            )
        record.server.start()
        return record.server


def _start_keeper(data: Path, plan: Mapping[str, object], locks: tuple[int, int]) -> None:
    # The keeper inherits both locks. It holds `start` until it has answered, so that no other command starts a keeper
    # if this command is killed meanwhile. It holds `keeper` until it ends.
    script = str(Path(keeper_script.__file__).absolute())
    command = [sys.executable, "-I", "-S", script, str(data), json.dumps(plan)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        pass_fds=locks, start_new_session=True,
    ) as keeper:  # fmt: skip
        answer, errors = keeper.communicate()
    try:
        failure = json.loads(answer)
    except ValueError:
        last = errors.strip().rpartition("\n")[2]
        failure = f"the keeper of {data} ended unexpectedly: {last or 'it was killed'}"
    if failure is not None:
        raise EmbeddedError(failure)


def _leave_server(data: Path) -> None:
    # The command that gets the lock `users` exclusively is the last one. It waits for the keeper, so that no process
    # is left when the command ends. If the keeper was killed, the command stops the server itself.
    users, keeper = file_beside(data, ".users"), file_beside(data, ".keeper")
    deadline = time.monotonic() + LEAVE_TIMEOUT
    while users.exists() and time.monotonic() < deadline:
        try:
            with (
                file_lock(users, fcntl.LOCK_EX | fcntl.LOCK_NB),
                suppress(BlockingIOError),
                file_lock(keeper, fcntl.LOCK_SH | fcntl.LOCK_NB),
            ):
                if record := Record.load(data):
                    stop_and_clean_up(record.server)
                return
        except BlockingIOError:
            with suppress(BlockingIOError), file_lock(users, fcntl.LOCK_SH | fcntl.LOCK_NB):
                return  # other commands still use the server
        time.sleep(0.01)
