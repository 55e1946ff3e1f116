"""The embedded PostgreSQL, tested from outside: it starts, is shared, and stops with its last command."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import asyncpg
import pytest

from embedded.embedded_helpers import Command, nothing_runs, query
from iu_listen import embedded
from iu_listen.embedded import EmbeddedError, running


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("major", embedded.MAJORS)
def test_a_server_starts_answers_and_stops(root: Path, major: int, durable: bool) -> None:
    """Each major version starts in an empty directory, answers through its socket, and is gone afterwards."""
    with running(root, major, durable=durable) as server:
        version = query(server.dsn(), "show server_version_num")
        names = ("data_checksums", "fsync", "listen_addresses", "synchronous_commit", "timezone")
        settings = [query(server.dsn(), f"show {name}") for name in names]

        assert int(version) // 10000 == major
        assert settings == ["on", "on" if durable else "off", "", "on", "UTC"]
        assert server.socket_dir.stat().st_mode & 0o777 == 0o700

    assert server.pid() is None
    assert not server.socket_dir.exists()
    assert nothing_runs(root)


def test_asyncpg_and_psql_read_the_dsn_alike(root: Path) -> None:
    """The DSN has the same meaning for asyncpg and for psql."""

    async def ask(dsn: str) -> object:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval("select current_database()")
        finally:
            await connection.close()

    with running(root, durable=False) as server:
        assert asyncio.run(ask(server.dsn())) == "iu"


def test_two_commands_share_one_server(root: Path) -> None:
    """Two commands share one server, which stops when the last of them has ended, not before."""
    first = Command(root)
    pid, server = first.server()
    second = Command(root)

    assert second.server() == (pid, server)
    first.end()
    assert server.pid() == pid
    second.end()
    assert server.pid() is None
    assert nothing_runs(root)


def test_simultaneous_commands_share_one_server(root: Path) -> None:
    """Commands that start at the same time in an empty directory share one server."""
    commands = [Command(root) for _ in range(5)]
    servers = [command.server() for command in commands]

    assert len({pid for pid, _ in servers}) == 1
    for command in commands:
        command.end()
    assert nothing_runs(root)


def test_a_command_that_starts_during_a_stop_gets_a_server(root: Path) -> None:
    """Commands that start while the server is being stopped get a working one, repeatedly."""
    with running(root, durable=False):
        pass
    leaving = Command(root)
    leaving.server()
    for _ in range(5):
        leaving.leave()
        coming = Command(root)
        _, server = coming.server()
        leaving.end()

        assert query(server.dsn(), "select 1") == "1"
        leaving = coming
    leaving.end()


def test_a_user_can_stop_and_restart_the_server(root: Path) -> None:
    """A user of the server may stop it by immediate shutdown and start it again with the same settings and data."""
    with running(root, durable=False, options={"max_prepared_transactions": "10"}) as server:
        query(server.dsn(), "create table kept (n int)")
        server.stop("immediate")
        assert server.pid() is None
        server.start()

        assert query(server.dsn(), "select count(*) from kept") == "0"
        assert query(server.dsn(), "show max_prepared_transactions") == "10"


def test_tcp_requires_the_password(root: Path) -> None:
    """With tcp the server answers on 127.0.0.1 to clients with the password, and to no others."""
    with running(root, durable=False, tcp=True) as server:
        dsn = server.tcp_dsn()

        assert query(dsn, "select host(inet_server_addr())") == "127.0.0.1"
        with pytest.raises(subprocess.CalledProcessError):
            query(dsn.replace("postgres:", "postgres:not"), "select 1")
        assert (root / "pg18.password").stat().st_mode & 0o777 == 0o600
    with running(root, durable=False) as server, pytest.raises(EmbeddedError, match="tcp=True"):
        server.tcp_dsn()
