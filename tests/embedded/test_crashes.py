"""Killed commands, keepers and servers: the next command finds a working server."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from embedded.embedded_helpers import Command, keeper, nothing_runs, processes, query, until
from iu_listen.embedded import running
from iu_listen.embedded.keeper import server_account


def test_the_server_stops_after_its_command_was_killed(root: Path) -> None:
    """After SIGKILL of the command that started it, the server stops by itself and keeps the data."""
    command = Command(root)
    _, server = command.server()
    query(server.dsn(), "create table kept as select 7 as n")
    command.end(signal.SIGKILL)
    until(lambda: not processes(root))

    with running(root, durable=False) as again:
        assert query(again.dsn(), "select n from kept") == "7"


def test_the_server_survives_the_command_that_started_it(root: Path) -> None:
    """After SIGKILL of the command that started it, the server stays for another command that uses it."""
    starter, other = Command(root), Command(root)
    pid, server = starter.server()
    other.server()
    starter.end(signal.SIGKILL)

    assert query(server.dsn(), "select pg_is_in_recovery()") == "f"
    assert server.pid() == pid
    other.end()
    assert nothing_runs(root)


def test_a_killed_keeper_is_replaced_by_the_next_command(root: Path) -> None:
    """After SIGKILL of the keeper, the next command adopts the running server and gives it a new keeper."""
    first = Command(root)
    pid, server = first.server()
    dead = keeper(server)
    os.kill(dead, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(dead))
    second = Command(root)

    assert second.server() == (pid, server)
    assert keeper(server) != dead
    second.end()
    assert server.pid() == pid
    first.end()
    assert nothing_runs(root)


def test_the_last_command_stops_the_server_of_a_killed_keeper(root: Path) -> None:
    """If the keeper was killed, the last command stops the server itself."""
    command = Command(root)
    _, server = command.server()
    os.kill(keeper(server), signal.SIGKILL)
    command.end()

    assert nothing_runs(root)


def test_a_server_without_keeper_and_commands_is_adopted(root: Path) -> None:
    """A server without its keeper and all its commands is adopted by the next command, and then stops."""
    command = Command(root)
    pid, server = command.server()
    os.kill(keeper(server), signal.SIGKILL)
    command.end(signal.SIGKILL)
    assert server.pid() == pid

    with running(root, durable=False) as adopted:
        assert adopted.pid() == pid
    assert nothing_runs(root)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_start_leaves_nothing_behind(root: Path, how: int) -> None:
    """Ctrl-C or SIGKILL during the first start leaves no process and no incomplete data directory."""
    command = Command(root)
    until(lambda: list(root.glob("pg18.new-*")))
    said = command.end(how)
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in said
        assert nothing_runs(root)
    until(lambda: not processes(root))

    assert not list(root.glob("pg18.new-*"))
    with running(root, durable=False) as server:
        assert query(server.dsn(), "select 1") == "1"


def test_an_incomplete_data_directory_is_removed(root: Path) -> None:
    """An incomplete data directory, after all processes were killed, is removed by the next start."""
    command = Command(root)
    until(lambda: list(root.glob("pg18.new-*/PG_VERSION")))
    for process in processes(root):
        process.kill()
    assert "the keeper" in command.end()
    assert list(root.glob("pg18.new-*"))

    with running(root, durable=False) as server:
        assert query(server.dsn(), "select 1") == "1"
    assert not list(root.glob("pg18.new-*"))


def test_a_stale_pid_does_not_prevent_the_start(root: Path) -> None:
    """A postmaster.pid that a crash has left does not prevent the start, even if another program has its process id."""
    command = Command(root)
    pid, server = command.server()
    postmaster = psutil.Process(pid)
    backends = postmaster.children()
    for victim in (keeper(server), command.process.pid, pid):
        os.kill(victim, signal.SIGKILL)
    command.end()
    psutil.wait_procs([postmaster, *backends], timeout=20)
    account = server_account(server.data)
    uid, gid = account or (None, None)
    with subprocess.Popen(["sleep", "60"], user=uid, group=gid) as innocent:
        for lock in (server.data / "postmaster.pid", server.socket_dir / ".s.PGSQL.5432.lock"):
            lock.write_text(lock.read_text().replace(str(pid), str(innocent.pid), 1))

        assert server.pid() is None
        with running(root, durable=False) as again:
            assert query(again.dsn(), "select 1") == "1"
        assert innocent.poll() is None
        innocent.kill()


def test_a_crashed_server_is_started_by_the_next_command(root: Path) -> None:
    """If the server crashed while commands use it, the next command starts it again for all."""
    with running(root, durable=False) as server:
        server.stop("immediate")
        with running(root, durable=False) as again:
            assert again == server
            assert query(server.dsn(), "select 1") == "1"
