"""Fixtures of servers that only the tests of the command line need."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cli.command import run
from clusters import place
from conftest import Database
from iu_listen import embedded
from iu_listen.embedded.keeper import run_as, server_account


@pytest.fixture(scope="module")
def own_server() -> Iterator[embedded.Server]:
    """A server that a test may stop, with TCP and a password; its database iu has the package, and an open gate."""
    with place() as root, embedded.running(root, 18, durable=False, tcp=True) as server:
        yield server


@pytest.fixture
def standby(applied: Database) -> Iterator[str]:
    """The DSN of ``applied`` on a real standby that pg_basebackup has made and that streams from the primary."""
    primary = applied.server
    if primary is None:
        pytest.skip("a standby can only be made of a server of ours")
    account = server_account(primary.data)
    with place() as root:
        data, socket = root / "data", root / "socket"
        data.mkdir(mode=0o700)
        socket.mkdir(mode=0o755)
        if account is not None:
            os.chown(data, *account)
            os.chown(socket, *account)
        made = run_as(
            [primary.bin / "pg_basebackup", "-D", data, "-d", primary.dsn("postgres"), "-R", "-c", "fast", "--no-sync"],
            account,
        )
        assert made.returncode == 0, made.stdout
        # postgresql.conf ends with an include of the configuration file beside the data directory.
        settings = primary.data.with_name(primary.data.name + ".conf").read_text()
        conf = data.with_name(primary.data.name + ".conf")
        conf.write_text(f"{settings}\nunix_socket_directories = '{socket}'\nunix_socket_permissions = 0777\n")
        conf.chmod(0o644)
        control = [primary.bin / "pg_ctl", "-s", "-w", "-D", data]
        started = run_as([*control, "-l", socket / "log", "start"], account)
        assert started.returncode == 0, started.stdout + (socket / "log").read_text()
        try:
            yield applied.dsn.replace(str(primary.socket_dir), str(socket))
        finally:
            run_as([*control, "-m", "immediate", "stop"], account)


@pytest.fixture
def neutral(empty) -> str:
    """The DSN of a database on which init has run."""
    done = run("init", "--json", dsn=empty.dsn)
    assert done.code == 0, done.out + done.err
    assert (done.json["base"], done.json["pass"]) == ("created", True)
    return empty.dsn
