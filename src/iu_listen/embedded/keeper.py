"""The keeper of one embedded PostgreSQL server: starts it, waits while commands use it, and stops it.

`iu_listen.embedded.command` runs this file as a detached script. It imports only the standard library, so it
starts in about 20 ms, and independently of the import path of the package. The state that several processes share is in
files beside the data directory `pg18`:

    pg18.users    flock: shared by every command that uses the server; exclusive by the keeper that stops it
    pg18.start    flock: exclusive while a command or a keeper creates or starts the server
    pg18.keeper   flock: exclusive while the keeper runs
    pg18.json     record of the start: the server, its settings, the process id of the keeper
    pg18.conf     settings, included by postgresql.conf, rewritten at every start
    pg18.log      log of the server
    pg18.password password for TCP, readable only by the account of the command

Rules: a lock is the only proof that a process runs, because the kernel releases it when the process ends in any way.
All programs of PostgreSQL run as the owner of the data directory, never as root. The keeper writes beside the data
directory and not into it: the keeper may be root, and the owner of that directory must not be able to redirect its
writes by a link.

This module neither chooses the places of data and binaries nor knows events.
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
STOP_TIMEOUT = 60  # seconds, the default of pg_ctl
MAX_LOG_BYTES = 16 * 2**20  # size in bytes from which a start of the server begins a new log

RESERVED_SETTINGS = ("port", "unix_socket_directories", "unix_socket_permissions")

# CREATE DATABASE is not allowed inside a DO block.
CREATE_DATABASE = r"SELECT 'CREATE DATABASE iu' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'iu') \gexec"

Account = tuple[int, int]  # uid and gid of the account that runs PostgreSQL if the command runs as root
CompletedProcess = subprocess.CompletedProcess[str]


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be created, started or stopped. The message has the reason and a remedy."""


class EmbeddedUnavailable(EmbeddedError):
    """The wheel with the binaries of PostgreSQL is not installed, or lacks the requested major version."""


@dataclass(frozen=True, slots=True)
class Server:
    """A PostgreSQL server of one major version with one data directory. All paths are absolute."""

    major: int
    data: Path
    socket_dir: Path
    bin: Path
    log: Path
    port: int

    def dsn(self, database: str = "iu") -> str:
        """URI of a database through the unix socket, in a form for both psql and asyncpg."""
        return f"postgresql://postgres@/{quote(database)}?host={quote(str(self.socket_dir))}&port={self.port}"

    def tcp_dsn(self, database: str = "iu") -> str:
        """URI of a database through 127.0.0.1, with the password. Raises EmbeddedError if TCP is off."""
        record = Record.load(self.data)
        if record is None or not record.settings["listen_addresses"]:
            raise EmbeddedError("this PostgreSQL listens only on its unix socket; start it with tcp=True")
        password = file_beside(self.data, ".password").read_text(encoding="utf-8")
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{quote(database)}"

    def pid(self) -> int | None:
        """Process id of the postmaster; None if it does not run, even if postmaster.pid exists."""
        try:
            pid = int((self.data / "postmaster.pid").read_text(encoding="utf-8").split("\n")[0])
        except (FileNotFoundError, ValueError):
            return None
        return pid if str(self.data) in command_line(pid) else None

    def start(self) -> None:
        """Start the server with its last settings, unless it runs. Raises EmbeddedError with the end of the log."""
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
            raise EmbeddedError(f"PostgreSQL {self.major} did not start:\n{_last_lines(heard or done.stdout)}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server and wait for its end; mode is `smart`, `fast` or `immediate`. Raises EmbeddedError."""
        if self.pid() is not None:
            done = self._ctl("stop", "-t", str(STOP_TIMEOUT), "-m", mode)
            if done.returncode and self.pid() is not None:
                raise EmbeddedError(f"PostgreSQL {self.major} did not stop:\n{_last_lines(done.stdout)}")

    def _ctl(self, *arguments: str) -> CompletedProcess:
        return run_as([self.bin / "pg_ctl", *arguments, "-s", "-w", "-D", self.data], server_account(self.data))

    def _forget_reused_pid(self) -> None:
        # After a crash of the machine, the pid in a lock file may belong to another program of the same account, and
        # PostgreSQL would take it for a second postmaster. The file of a dead pid is left to PostgreSQL, which also
        # checks whether a backend of the old server still holds the shared memory.
        for lock in (self.data / "postmaster.pid", self.socket_dir / f".s.PGSQL.{self.port}.lock"):
            with suppress(OSError, ValueError):
                os.kill(int(lock.read_text(encoding="utf-8").split("\n")[0]), 0)
                lock.unlink()


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a server that a keeper has started, with its settings and the process id of the keeper."""

    server: Server
    settings: dict[str, str]
    keeper: int

    @classmethod
    def load(cls, data: Path) -> "Record | None":
        """The record of this data directory; None: there is none, or it is not valid."""
        try:
            found = json.loads(file_beside(data, ".json").read_text(encoding="utf-8"))
            places = {name: Path(found["server"][name]) for name in ("data", "socket_dir", "bin", "log")}
            return cls(Server(**found["server"] | places), found["settings"], found["keeper"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def save(self) -> None:
        """Replace the record of this data directory."""
        write_private_file(
            file_beside(self.server.data, ".json"), json.dumps(asdict(self), default=str, indent=1), None
        )


def os_error_message(error: OSError) -> str:
    """Message for the operator about an error of the operating system."""
    where = error.filename or "the embedded PostgreSQL"
    return f"cannot use {where}: {error.strerror}; set another IU_LISTEN_DATA_DIR, or pass --dsn"


def file_beside(data: Path, suffix: str) -> Path:
    """Path of a file that belongs to a data directory and is next to it."""
    return data.with_name(data.name + suffix)


@contextmanager
def file_lock(path: Path, how: int) -> Iterator[int]:
    """Context that holds a flock; `how` as for fcntl.flock. With LOCK_NB, raises BlockingIOError if it is taken."""
    # Mode 0600: an account that may read the file could lock it and block every command.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


def write_private_file(path: Path, text: str, account: Account | None) -> None:
    """Write a file that only its owner may read. It replaces an existing file."""
    descriptor, new = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        if account is not None:
            os.fchown(descriptor, *account)
        file.write(text)
    os.replace(new, path)


def server_account(data: Path) -> Account | None:
    """The account that runs PostgreSQL: the owner of the data if this process is root; None: the present account."""
    if os.geteuid() != 0:
        return None
    found = data.stat()
    return found.st_uid, found.st_gid


def run_as(command: Sequence[str | Path], account: Account | None, text: str = "") -> CompletedProcess:
    """Run a program as the account, without a terminal and without PG* variables. Its failure raises nothing."""
    uid, gid = account or (None, None)
    return subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, umask=0o077, start_new_session=True,
        user=uid, group=gid, extra_groups=None if account is None else [], check=False,
    )  # fmt: skip


def command_line(pid: int) -> str:
    """The command line of a running process; empty: there is no such process."""
    if Path("/proc/self/cmdline").exists():
        with suppress(OSError):
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "))
        return ""
    return run_as(["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], None).stdout


def render_settings(settings: Mapping[str, str]) -> str:
    """Format settings as a configuration file of PostgreSQL."""
    escapes = str.maketrans({"\\": "\\\\", "'": "''", "\n": "\\n"})
    return "".join(f"{name} = '{value.translate(escapes)}'\n" for name, value in settings.items())


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-15:])


def _initialise(data: Path, bin: Path, account: Account | None, durable: bool) -> None:
    if data.exists() and any(data.iterdir()):
        raise EmbeddedError(f"{data} has files that are not PostgreSQL's; move it away")
    # initdb writes into a temporary directory, which is renamed when it is complete. The name is unique: an initdb that
    # outlives its keeper empties its directory if it fails, and must not empty a newer one.
    for stale in data.parent.glob(data.name + ".new-*"):
        shutil.rmtree(stale, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=data.name + ".new-", dir=data.parent))
    try:
        if account is not None:
            os.chown(new, *account)
        options = ["--encoding=UTF8", "--locale=C", "--data-checksums", "--username=postgres"]
        options += ["--auth-local=trust", "--auth-host=scram-sha-256", *([] if durable else ["--no-sync"])]
        done = run_as([bin / "initdb", "-D", new, *options], account)
        if done.returncode:
            raise EmbeddedError(f"initdb failed:\n{_last_lines(done.stdout)}")
        append = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(new / "postgresql.conf", append), "w", encoding="utf-8") as file:
            file.write(f"\ninclude '../{data.name}.conf'\n")
        os.rename(new, data)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if durable:
        # Without fsync, a crash could undo the rename after transactions were committed.
        for path in (data / "postgresql.conf", data.parent):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def _create_socket_directory(data: Path, account: Account | None) -> Path:
    # In /tmp, because the path of a socket is limited to 107 bytes and the path of a clone may be longer. Another
    # account may have created the name, so the directory is used only if this account owns it and no other one has
    # access.
    path = Path(f"/tmp/iu-listen-{sha256(os.fsencode(data)).hexdigest()[:12]}")  # noqa: S108 owner and mode are checked below
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


def _create_database_and_password(server: Server, tcp: bool) -> None:
    script = CREATE_DATABASE + "\n"
    if tcp:
        password = file_beside(server.data, ".password").read_text(encoding="utf-8")
        script += f"ALTER ROLE postgres PASSWORD '{password}';\n"
    psql = [str(server.bin / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", server.dsn("postgres")]
    done = run_as(psql, server_account(server.data), script)
    if done.returncode:
        raise EmbeddedError(f"PostgreSQL {server.major} started but does not answer:\n{_last_lines(done.stdout)}")


def adopt_or_start(
    data: Path, bin: Path, major: int, account: Account | None, durable: bool, settings: dict[str, str]
) -> Server:
    """Adopt the running server of this data, or create and start one. Raises EmbeddedError and OSError."""
    record = Record.load(data)
    if record is not None and record.server.pid() is not None:
        record = replace(record, server=replace(record.server, bin=bin), keeper=os.getpid())
        with suppress(EmbeddedError):
            _create_database_and_password(record.server, bool(record.settings["listen_addresses"]))
            record.save()
            return record.server
        record.server.stop()  # it may have been shutting down already

    if not (data / "PG_VERSION").exists():
        _initialise(data, bin, account, durable)
    if (version := (data / "PG_VERSION").read_text(encoding="utf-8").strip()) != str(major):
        raise EmbeddedError(f"{data} was created by PostgreSQL {version}, not {major}; move it away")
    tcp = bool(settings["listen_addresses"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1] if tcp else 5432
    server = Server(major, data, _create_socket_directory(data, account), bin, file_beside(data, ".log"), port)
    server.stop()  # a server that runs without a record cannot be found by commands
    settings = settings | dict(zip(RESERVED_SETTINGS, (str(port), str(server.socket_dir), "0700"), strict=True))
    write_private_file(file_beside(data, ".conf"), render_settings(settings), account)
    if tcp:
        write_private_file(file_beside(data, ".password"), secrets.token_urlsafe(24), None)
    if server.log.exists() and server.log.stat().st_size > MAX_LOG_BYTES:
        os.replace(server.log, file_beside(data, ".log.1"))
    if not server.log.exists():
        write_private_file(server.log, "", account)
    Record(server, settings, os.getpid()).save()
    try:
        server.start()
        _create_database_and_password(server, tcp)
    except EmbeddedError:
        server.stop("immediate")
        raise
    return server


def stop_and_clean_up(server: Server) -> None:
    """Stop the server and remove its socket directory below /tmp."""
    server.stop()
    with suppress(OSError):
        server.socket_dir.rmdir()


def keep_while_used(data: Path, locks: tuple[int, int], bin: str, **how: Any) -> None:
    """Start the server, write the result to standard output as JSON, wait until no command uses it, and stop it.

    The result is null or the text of the error. `locks` are the inherited descriptors that hold `pg18.start` and
    `pg18.keeper`.
    """
    try:
        server, failure = adopt_or_start(data, Path(bin), **how), None
    except OSError as error:
        failure = os_error_message(error)
    except EmbeddedError as error:
        failure = str(error)
    with suppress(BrokenPipeError):  # the command may have ended; the server must still be stopped
        os.write(1, json.dumps(failure).encode())
    for stream in (1, 2):
        os.dup2(0, stream)  # closes the pipes: the command waits for their end
    os.close(locks[0])
    if failure is None:
        with file_lock(file_beside(data, ".users"), fcntl.LOCK_EX):
            stop_and_clean_up(server)
            os.close(locks[1])  # before `users`: the next holder of `users` must find no keeper
            os._exit(0)  # at once, because the last command waits for this end


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # the orphaned child leaves no zombie in the command, and no warning
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")
    keep_while_used(Path(sys.argv[1]), **json.loads(sys.argv[2]))
