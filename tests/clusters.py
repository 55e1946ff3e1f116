"""Clusters beside the shared one: new clusters, clusters with given transaction ids, copies, and dumps between them.

All of them are a ``Server`` of the embedded PostgreSQL, so they are stopped and started like any other, by
the account that owns their data.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from iu_listen import embedded
from iu_listen.embedded.keeper import (
    Record,
    Server,
    file_beside,
    render_settings,
    run_as,
    server_account,
    write_private_file,
)

#: The file system in memory of Linux, and the free space that it needs, in bytes: several servers with their WAL.
MEMORY, ROOM = Path("/dev/shm"), 8 * 2**30
#: A transaction id that the shared servers never reach; it begins a file of pg_xact, so that no file is missing.
FAR = 5 * 2**20


def program(server: Server, name: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """Run one of the server's programs as the owner of its data; return its output."""
    command: list[str | Path] = [server.bin / name, *arguments]
    if cwd is not None:
        command = ["/bin/sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", cwd, *command]
    done = run_as(command, server_account(server.data))
    assert done.returncode == 0, done.stdout
    return done.stdout


def psql(server: Server, script: str, database: str = "postgres") -> str:
    """Run statements without an event loop, for example during cleanup; return the output."""
    done = run_as(
        [server.bin / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", server.dsn(database)],
        server_account(server.data),
        script,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


@cache
def memory() -> Path | None:
    """A file system in memory, where creating a database takes a tenth of the time; None:
    there is none with enough space.

    The servers of the tests do not flush to disk, so its use changes no result. In a container it often has only 64 MB.
    """
    with suppress(OSError):
        room = min(psutil.disk_usage(str(MEMORY)).free, psutil.virtual_memory().available)
        if room > ROOM and os.access(MEMORY, os.W_OK):
            return MEMORY
    return None


@contextmanager
def place(account_of: Path | None = None, under: Path | None = None) -> Iterator[Path]:
    """A directory that the account of a server can read; it can also write to it, if it owns ``account_of``.

    Args:
        account_of: The data directory of a server.
        under: The parent directory; None: in memory, if there is enough space.
    """
    with TemporaryDirectory(prefix="iu-listen-tests-", dir=under or memory()) as name:
        path = Path(name)
        path.chmod(0o755)
        if account_of is not None and (account := server_account(account_of)):
            os.chown(path, *account)
        yield path


@contextmanager
def cluster(major: int, *, next_xid: int | None = None, **options: str) -> Iterator[Server]:
    """A new cluster; its next transaction is ``next_xid``, a multiple of 2**20."""
    with place() as root, embedded.running(root, major, durable=False, options=options) as server:
        if next_xid is not None:
            server.stop()
            program(server, "pg_resetwal", "-x", str(next_xid), "-D", server.data)
            server.start()
        yield server


@contextmanager
def copy_of(
    original: Server, *options: str, signal: str | None = None, under: Path | None = None, **settings: str
) -> Iterator[Server]:
    """A physical copy, taken now and not started.

    Args:
        original: A running server.
        options: Further options of pg_basebackup.
        signal: ``recovery`` or ``standby``; None leaves the copy as pg_basebackup made it: an independent primary.
        under: The parent of the new directory with its data.
        settings: Settings in addition to those of the original; port and socket are the copy's own.
    """
    record, account = Record.load(original.data), server_account(original.data)
    assert record is not None
    with place(original.data, under) as home:
        # The same name, because postgresql.conf ends with an include of the file that has the name of the directory.
        data, sockets = home / original.data.name, home / "socket"
        sockets.mkdir(mode=0o700)
        if account is not None:
            os.chown(sockets, *account)
        program(
            original, "pg_basebackup", "-D", data, "-d", original.dsn("postgres"), "-c", "fast", "--no-sync", *options
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1] if record.settings["listen_addresses"] else original.port
        server = replace(original, data=data, socket_dir=sockets, log=file_beside(data, ".log"), port=port)
        mine = record.settings | {"port": str(port), "unix_socket_directories": str(sockets)} | settings
        write_private_file(file_beside(data, ".conf"), render_settings(mine), account)
        write_private_file(server.log, "", account)
        with suppress(FileNotFoundError):
            shutil.copy(file_beside(original.data, ".password"), file_beside(data, ".password"))
        if signal:
            write_private_file(data / f"{signal}.signal", "", account)
        Record(server, mine, os.getpid()).save()
        try:
            yield server
        finally:
            server.stop("immediate")


def dump(source: Server, database: str, file: Path, *options: str) -> None:
    """Run pg_dump in the custom format, which pg_restore reads."""
    program(source, "pg_dump", "-Fc", "-f", file, "-d", source.dsn(database), *options)


def restore(target: Server, database: str, file: Path, *options: str) -> str:
    """Run pg_restore into a new database; return its connection string."""
    psql(target, f"create database {database}")
    program(target, "pg_restore", "--exit-on-error", "-d", target.dsn(database), *options, file)
    return target.dsn(database)
