"""A streaming standby of an embedded server: created, made synchronous, frozen, promoted, and removed."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil

from clusters import copy_of, psql
from faults.cleanup_on_exit import cleanup_after_process
from iu_listen.embedded.keeper import Server, run_as, server_account
from support import connected, wait_until

NAME = "iu_standby"


@contextmanager
def standby_of(primary: Server, under: Path | None = None, **settings: str) -> Iterator[Server]:
    """A standby that streams through its own slot; it is an ordinary server and can be stopped and started.

    It has the settings of the primary with ``settings`` in addition, and another port and socket. Its data is in a new
    directory below ``under``.
    """
    slot = f"{NAME}_{secrets.token_hex(4)}"
    options = ("-R", "-C", "-S", slot, "-d", f"{primary.dsn('postgres')}&application_name={NAME}")
    try:
        with (
            copy_of(primary, *options, under=under, **settings) as server,
            cleanup_after_process(
                '"$1" stop -m immediate -D "$2"',
                server.bin / "pg_ctl",
                server.data,
                account=server_account(server.data),
            ),
        ):
            server.start()
            yield server
    finally:
        if primary.pid() is not None:
            _drop_slot(primary, slot)


def _drop_slot(primary: Server, slot: str) -> None:
    """Drop the slot; otherwise the primary would keep its WAL for a removed standby."""
    named = f"from pg_replication_slots where slot_name = '{slot}'"
    psql(primary, f"select pg_terminate_backend(active_pid, 10000) {named} and active_pid is not null")
    psql(primary, f"select pg_drop_replication_slot(slot_name) {named}")


@asynccontextmanager
async def synchronous(primary: Server) -> AsyncIterator[None]:
    """Make the standby synchronous: it has all earlier data, and each commit is acknowledged only when it has it."""
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
            # The checkpointer tells all sessions to wait; it reads its settings before a checkpoint.
            await connection.execute("checkpoint")
            written = await connection.fetchval("select pg_current_wal_insert_lsn()::text")
            await wait_until(lambda: following("flush_lsn >= $1::text::pg_lsn", written), "the standby has everything")
        yield
    finally:
        # If the primary was stopped for good, there is no setting to reset.
        if primary.pid() is not None:
            psql(primary, "alter system reset synchronous_standby_names")
            psql(primary, "select pg_reload_conf()")


def stop_receiving(standby: Server) -> None:
    """Let the standby receive no more data, permanently."""
    psql(standby, "alter system set primary_conninfo = ''")
    psql(standby, "select pg_reload_conf()")
    for _ in range(500):
        if psql(standby, "select count(*) from pg_stat_wal_receiver") == "0":
            return
        time.sleep(0.02)
    raise AssertionError("the standby receives still")


def promote(standby: Server) -> None:
    """Promote the standby, and wait until it accepts writes."""
    done = run_as([standby.bin / "pg_ctl", "promote", "-s", "-w", "-D", standby.data], server_account(standby.data))
    assert done.returncode == 0, done.stdout


def replayed_position(standby: Server) -> str:
    """The WAL position up to which the standby has replayed."""
    return psql(standby, "select pg_last_wal_replay_lsn()")


@contextmanager
def suspended(server: Server) -> Iterator[None]:
    """Stop all processes of the server, as on a machine that hangs: its sockets stay open, and nothing answers."""
    pid = server.pid()
    assert pid is not None
    postmaster = psutil.Process(pid)
    # The postmaster is stopped first, so that it starts no new processes.
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
