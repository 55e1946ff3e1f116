"""The keeper of one embedded PostgreSQL: it starts the server, stays while anybody uses it, and stops it.

`iu_listen.embedded` runs this file as a detached script. Nothing is imported but the standard library, so it
is up in some 20 ms, and in the same way however the package itself was found. What several processes must
agree on lives beside the data directory `pg18`:

    pg18.users    flock: shared by every command that uses the server, exclusive by the keeper which stops it
    pg18.start    flock: exclusive while one of them makes or starts the server
    pg18.keeper   flock: exclusive as long as the keeper lives
    pg18.json     what was started: the server, its settings, the keeper's process
    pg18.conf     the settings, included by postgresql.conf, rewritten at every start
    pg18.log      what the server said;  pg18.password  for TCP, readable by the command's account only

Rules: a lock is the only proof of life, because the kernel takes it back however a process ends. Whatever
PostgreSQL executes runs as the owner of the data directory, never as root. The keeper writes beside the data
directory, not into it: it may be root, and the owner of that directory must not be able to lead it astray.

It refuses to know where data and binaries should live, and that there are events.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

START_TIMEOUT = 300  # seconds; recovery of a full max_wal_size takes minutes on a slow disk
STOP_TIMEOUT = 60  # seconds, as pg_ctl's own
LOG_LIMIT = 16 * 2**20  # bytes, after which a start begins a new log

IDENTITY = ("port", "unix_socket_directories", "unix_socket_permissions")

# CREATE DATABASE cannot stand inside a DO block.
ENSURE = r"SELECT 'CREATE DATABASE iu' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'iu') \gexec"

Account = tuple[int, int]  # uid and gid of whoever runs PostgreSQL when the command itself is root
Done = subprocess.CompletedProcess[str]


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be made, started or stopped; the message says why and what to do."""


class EmbeddedUnavailable(EmbeddedError):
    """The wheel with PostgreSQL's binaries is not installed, or not with what was asked for."""


@dataclass(frozen=True, slots=True)
class Server:
    """A PostgreSQL of one major version on one data directory. All paths are absolute."""

    major: int
    data: Path
    socket_dir: Path
    bin: Path
    log: Path
    port: int

    def dsn(self, database: str = "iu") -> str:
        """The URI through the unix socket, as both psql and asyncpg read it."""
        return f"postgresql://postgres@/{quote(database)}?host={quote(str(self.socket_dir))}&port={self.port}"

    def tcp_dsn(self, database: str = "iu") -> str:
        """The URI through 127.0.0.1, with the password. Raises EmbeddedError when not started with tcp."""
        record = Record.load(self.data)
        if record is None or not record.settings["listen_addresses"]:
            raise EmbeddedError("this PostgreSQL listens on its unix socket only: start it with tcp=True")
        password = beside(self.data, ".password").read_text(encoding="utf-8")
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{quote(database)}"

    def pid(self) -> int | None:
        """The postmaster's process, or None when it does not run, whatever postmaster.pid says."""
        try:
            pid = int((self.data / "postmaster.pid").read_text(encoding="utf-8").split("\n")[0])
        except (FileNotFoundError, ValueError):
            return None
        return pid if str(self.data) in command_line(pid) else None

    def start(self) -> None:
        """Start, unless it runs, with the settings of last time. Raises EmbeddedError with the log's end."""
        if self.pid() is not None:
            return
        self._forget_reused_pid()
        said = self.log.stat().st_size if self.log.exists() else 0
        done = self._ctl("start", "-t", str(START_TIMEOUT), "-l", str(self.log))
        if done.returncode:
            heard = ""
            with suppress(OSError), self.log.open(encoding="utf-8", errors="replace") as log:
                log.seek(said)
                heard = log.read()
            raise EmbeddedError(f"PostgreSQL {self.major} did not start:\n{_end(heard or done.stdout)}")

    def stop(self, mode: str = "fast") -> None:
        """Stop and wait; mode is `smart`, `fast` or `immediate`. Raises EmbeddedError when it cannot."""
        if self.pid() is not None:
            done = self._ctl("stop", "-t", str(STOP_TIMEOUT), "-m", mode)
            if done.returncode and self.pid() is not None:
                raise EmbeddedError(f"PostgreSQL {self.major} did not stop:\n{_end(done.stdout)}")

    def _ctl(self, *arguments: str) -> Done:
        return run([self.bin / "pg_ctl", *arguments, "-s", "-w", "-D", self.data], owner(self.data))

    def _forget_reused_pid(self) -> None:
        # After a crash of the machine the pid in a lock file may be another program's of the same account,
        # which PostgreSQL takes for a second postmaster. A dead pid is left to PostgreSQL: it also looks
        # whether a backend of the old server still holds the shared memory.
        for lock in (self.data / "postmaster.pid", self.socket_dir / f".s.PGSQL.{self.port}.lock"):
            with suppress(OSError, ValueError):
                os.kill(int(lock.read_text(encoding="utf-8").split("\n")[0]), 0)
                lock.unlink()


@dataclass(frozen=True, slots=True)
class Record:
    """What a keeper has started."""

    server: Server
    settings: dict[str, str]
    keeper: int

    @classmethod
    def load(cls, data: Path) -> "Record | None":
        """The last record of this data directory, or None."""
        try:
            found = json.loads(beside(data, ".json").read_text(encoding="utf-8"))
            places = {name: Path(found["server"][name]) for name in ("data", "socket_dir", "bin", "log")}
            return cls(Server(**found["server"] | places), found["settings"], found["keeper"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def save(self) -> None:
        """Replace the record of this data directory."""
        write(beside(self.server.data, ".json"), json.dumps(asdict(self), default=str, indent=1), None)


def plain(error: OSError) -> str:
    """What the operating system refused, for whoever typed the command."""
    where = error.filename or "the embedded PostgreSQL"
    return f"cannot use {where}: {error.strerror}; give another IU_LISTEN_DATA_DIR, or --dsn"


def beside(data: Path, suffix: str) -> Path:
    """The file which belongs to a data directory and stands next to it."""
    return data.with_name(data.name + suffix)


@contextmanager
def locked(path: Path, how: int) -> Iterator[int]:
    """Hold a flock; `how` as for fcntl.flock. With LOCK_NB, raises BlockingIOError when it is taken."""
    # Whoever may read it may lock it, and every command would wait.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


def write(path: Path, text: str, account: Account | None) -> None:
    """Replace a file by one that only its owner may read, whatever stood there before."""
    descriptor, new = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        if account is not None:
            os.fchown(descriptor, *account)
        file.write(text)
    os.replace(new, path)


def owner(data: Path) -> Account | None:
    """The account to run PostgreSQL as: None is the present one, which is right unless it is root."""
    if os.geteuid() != 0:
        return None
    found = data.stat()
    return found.st_uid, found.st_gid


def run(command: Sequence[str | Path], account: Account | None, text: str = "") -> Done:
    """Run a program as the account, out of reach of the terminal and of PG* variables; it may fail."""
    uid, gid = account or (None, None)
    return subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, umask=0o077, start_new_session=True,
        user=uid, group=gid, extra_groups=None if account is None else [], check=False,
    )  # fmt: skip


def command_line(pid: int) -> str:
    """The command line of a living process, or an empty string."""
    if Path("/proc/self/cmdline").exists():
        with suppress(OSError):
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "))
        return ""
    return run(["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], None).stdout


def render(settings: Mapping[str, str]) -> str:
    """The settings as a configuration file of PostgreSQL."""
    escapes = str.maketrans({"\\": "\\\\", "'": "''", "\n": "\\n"})
    return "".join(f"{name} = '{value.translate(escapes)}'\n" for name, value in settings.items())


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-15:])


def _initialise(data: Path, bin: Path, account: Account | None, durable: bool) -> None:
    if data.exists() and any(data.iterdir()):
        raise EmbeddedError(f"{data} is not empty and not PostgreSQL's: move it away")
    # Made aside and renamed when complete. The name is new each time: an initdb that outlived its keeper
    # empties its directory when it fails, and must not find ours under that name.
    for stale in data.parent.glob(data.name + ".new-*"):
        shutil.rmtree(stale, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=data.name + ".new-", dir=data.parent))
    try:
        if account is not None:
            os.chown(new, *account)
        options = ["--encoding=UTF8", "--locale=C", "--data-checksums", "--username=postgres"]
        options += ["--auth-local=trust", "--auth-host=scram-sha-256", *([] if durable else ["--no-sync"])]
        done = run([bin / "initdb", "-D", new, *options], account)
        if done.returncode:
            raise EmbeddedError(f"initdb failed:\n{_end(done.stdout)}")
        append = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(new / "postgresql.conf", append), "w", encoding="utf-8") as file:
            file.write(f"\ninclude '../{data.name}.conf'\n")
        os.rename(new, data)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if durable:
        # Otherwise a crash could take back the rename after transactions were promised to be kept.
        for path in (data / "postgresql.conf", data.parent):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def _socket_directory(data: Path, account: Account | None) -> Path:
    # In /tmp because a socket's path may have 107 bytes and a clone's path has any length. Somebody else may
    # have taken the name there, so it is used only when it is ours alone.
    path = Path(f"/tmp/iu-listen-{sha256(os.fsencode(data)).hexdigest()[:12]}")  # noqa: S108 ours alone, see above
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        ours = os.geteuid() if account is None else account[0]
        if stat.S_ISDIR(found.st_mode) and found.st_uid == ours and not found.st_mode & 0o077:
            return path
        path = Path(tempfile.mkdtemp(prefix=path.name + "-", dir="/tmp"))
    if account is not None:
        os.chown(path, *account)
    return path


def _prepare(server: Server, tcp: bool) -> None:
    script = ENSURE + "\n"
    if tcp:
        password = beside(server.data, ".password").read_text(encoding="utf-8")
        script += f"ALTER ROLE postgres PASSWORD '{password}';\n"
    psql = [str(server.bin / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", server.dsn("postgres")]
    done = run(psql, owner(server.data), script)
    if done.returncode:
        raise EmbeddedError(f"PostgreSQL {server.major} started but does not answer:\n{_end(done.stdout)}")


def bring_up(
    data: Path, bin: Path, major: int, account: Account | None, durable: bool, settings: dict[str, str]
) -> Server:
    """The running server of this data: adopted, or made and started. Raises EmbeddedError and OSError."""
    record = Record.load(data)
    if record is not None and record.server.pid() is not None:
        record = replace(record, server=replace(record.server, bin=bin), keeper=os.getpid())
        with suppress(EmbeddedError):
            _prepare(record.server, bool(record.settings["listen_addresses"]))
            record.save()
            return record.server
        record.server.stop()  # it may have been on its way down already

    if not (data / "PG_VERSION").exists():
        _initialise(data, bin, account, durable)
    if (made_by := (data / "PG_VERSION").read_text(encoding="utf-8").strip()) != str(major):
        raise EmbeddedError(f"{data} was made by PostgreSQL {made_by}, not {major}: move it away")
    tcp = bool(settings["listen_addresses"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1] if tcp else 5432
    server = Server(major, data, _socket_directory(data, account), bin, beside(data, ".log"), port)
    server.stop()  # one that runs without a record has nobody who could find it
    settings = settings | dict(zip(IDENTITY, (str(port), str(server.socket_dir), "0700"), strict=True))
    write(beside(data, ".conf"), render(settings), account)
    if tcp:
        write(beside(data, ".password"), secrets.token_urlsafe(24), None)
    if server.log.exists() and server.log.stat().st_size > LOG_LIMIT:
        os.replace(server.log, beside(data, ".log.1"))
    if not server.log.exists():
        write(server.log, "", account)
    Record(server, settings, os.getpid()).save()
    try:
        server.start()
        _prepare(server, tcp)
    except EmbeddedError:
        server.stop("immediate")
        raise
    return server


def finish(server: Server) -> None:
    """Stop the server and give its name below /tmp back."""
    server.stop()
    with suppress(OSError):
        server.socket_dir.rmdir()


def keep(data: Path, locks: tuple[int, int], bin: str, **how: Any) -> None:
    """Bring the server up, say so on standard output as a JSON text, wait until nobody uses it, and stop it.

    `locks` are the inherited descriptors which hold `pg18.start` and `pg18.keeper`.
    """
    try:
        server, failure = bring_up(data, Path(bin), **how), None
    except OSError as error:
        failure = plain(error)
    except EmbeddedError as error:
        failure = str(error)
    with suppress(BrokenPipeError):  # the command may be gone; the server is here and must be stopped
        os.write(1, json.dumps(failure).encode())
    for stream in (1, 2):
        os.dup2(0, stream)  # the command waits for the end of its pipes
    os.close(locks[0])
    if failure is None:
        with locked(beside(data, ".users"), fcntl.LOCK_EX):
            finish(server)
            os.close(locks[1])  # before `users`: whoever gets that one next must find no keeper
            os._exit(0)  # at once: the last command waits for this, and reports that nothing is left


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # a child of nobody leaves no zombie to the command, and no warning
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")
    keep(Path(sys.argv[1]), **json.loads(sys.argv[2]))
