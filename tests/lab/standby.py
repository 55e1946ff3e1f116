"""A streaming standby of an embedded server: made, made synchronous, frozen, promoted. Nothing of it is left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from iu_listen.embedded_keeper import Record, Server, beside, owner, render, write
from iu_listen.embedded_keeper import run as run_as
from lab.mourner import mourned_by
from support import connected, wait_until

NAME = "iu_standby"


def psql(server: Server, script: str, database: str = "postgres") -> str:
    """Run statements without an event loop, as whoever cleans up must."""
    done = run_as(
        [server.bin / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", server.dsn(database)], owner(server.data), script
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


@contextmanager
def standby_of(primary: Server, under: Path | None = None, **settings: str) -> Iterator[Server]:
    """A standby that follows through a slot of its own, as a server like any other: it can be stopped and started.

    It has the settings of the primary, with ``settings`` on top, another port and another socket; its data lies in
    a new directory below ``under``.
    """
    record, account, slot = Record.load(primary.data), owner(primary.data), f"{NAME}_{secrets.token_hex(4)}"
    assert record is not None
    with TemporaryDirectory(prefix="iu-listen-standby-", dir=under) as name:
        home = Path(name)
        home.chmod(0o755)
        # The same name, because postgresql.conf ends with an include of the file that is called like the directory.
        data = home / primary.data.name
        sockets = home / "socket"
        for directory in (data, sockets):
            directory.mkdir(mode=0o700)
            if account is not None:
                os.chown(directory, *account)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1] if record.settings["listen_addresses"] else primary.port
        server = replace(primary, data=data, socket_dir=sockets, log=beside(data, ".log"), port=port)
        mine = {"port": str(port), "unix_socket_directories": str(sockets)} | settings
        try:
            made = run_as(
                [primary.bin / "pg_basebackup", "-D", data, "-d", f"{primary.dsn('postgres')}&application_name={NAME}",
                 "-R", "-C", "-S", slot, "-c", "fast", "--no-sync"],
                account,
            )  # fmt: skip
            assert made.returncode == 0, made.stdout
            write(beside(data, ".conf"), render(record.settings | mine), account)
            write(server.log, "", account)
            with suppress(FileNotFoundError):
                shutil.copy(beside(primary.data, ".password"), beside(data, ".password"))
            Record(server, record.settings | mine, os.getpid()).save()
            with mourned_by('"$1" stop -m immediate -D "$2"', server.bin / "pg_ctl", data, account=account):
                server.start()
                yield server
        finally:
            server.stop("immediate")
            if primary.pid() is not None:
                _drop_slot(primary, slot)


def _drop_slot(primary: Server, slot: str) -> None:
    """Or the primary would keep its WAL for a standby that is gone."""
    named = f"from pg_replication_slots where slot_name = '{slot}'"
    psql(primary, f"select pg_terminate_backend(active_pid, 10000) {named} and active_pid is not null")
    psql(primary, f"select pg_drop_replication_slot(slot_name) {named}")


@asynccontextmanager
async def synchronous(primary: Server) -> AsyncIterator[None]:
    """From here on nothing is acknowledged that the standby does not have, and it has all that was before."""
    async with connected(primary.dsn("postgres")) as connection:
        await connection.execute(f"alter system set synchronous_standby_names = '{NAME}'")
        await connection.execute("select pg_reload_conf()")
    try:
        async with connected(primary.dsn("postgres")) as connection:

            async def following(condition: str, *args: object) -> bool:
                return await connection.fetchval(
                    f"select count(*) = 1 from pg_stat_replication where application_name = '{NAME}' and {condition}",
                    *args,
                )

            await wait_until(lambda: following("sync_state = 'sync'"), "the standby is the synchronous one")
            # It is the checkpointer who tells all sessions to wait; it reads its settings before it begins.
            await connection.execute("checkpoint")
            written = await connection.fetchval("select pg_current_wal_insert_lsn()::text")
            await wait_until(lambda: following("flush_lsn >= $1::text::pg_lsn", written), "the standby has everything")
        yield
    finally:
        # A primary that was stopped for good took the setting with it.
        if primary.pid() is not None:
            psql(primary, "alter system reset synchronous_standby_names")
            psql(primary, "select pg_reload_conf()")


def promote(standby: Server) -> None:
    """Make the standby a primary, and wait until it takes writes."""
    done = run_as([standby.bin / "pg_ctl", "promote", "-s", "-w", "-D", standby.data], owner(standby.data))
    assert done.returncode == 0, done.stdout


def replayed(standby: Server) -> str:
    """How far the standby has come."""
    return psql(standby, "select pg_last_wal_replay_lsn()")


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """The whole server stands still, as on a machine that hangs: its sockets stay open, nothing answers."""
    pid = server.pid()
    assert pid is not None
    postmaster = psutil.Process(pid)
    # First the postmaster, so that it starts nobody new.
    postmaster.send_signal(signal.SIGSTOP)
    backends = postmaster.children(recursive=True)
    try:
        for backend in backends:
            with suppress(psutil.NoSuchProcess):
                backend.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in (*backends, postmaster):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
