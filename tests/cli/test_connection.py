"""How a command connects to its database: several hosts, parameters of libpq, services; no output shows a password."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from cli.command import Done, execute, holding, on_one_server, refused, rows, run, running, seen, value

#: Passwords with characters that users forget to percent-encode.
UNENCODED = ["S3cretPart#rest", "S3cretPart/rest", "S3cretPart?rest", "S3[cretPart", "S3cret@Part", "31415/S3cretPart"]


@contextmanager
def silent() -> Iterator[int]:
    """A server that accepts connections and never answers; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept = []

        def accept() -> None:
            while True:
                try:
                    kept.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()


@pytest.fixture
def parts(own_server):
    """User with password, and host with port, of a server with TCP on which the package is applied."""
    found = urlsplit(own_server.tcp_dsn("postgres"))
    if not value(own_server.tcp_dsn("postgres"), "select count(*) from pg_database where datname = 'several'"):
        execute(own_server.tcp_dsn("postgres"), "create database several")
        assert run("apply", "--base", "--no-backup", "x", dsn=own_server.tcp_dsn("several")).code == 0
        assert run("gate", "open", "worker", dsn=own_server.tcp_dsn("several")).code == 0
    login, _, host = found.netloc.rpartition("@")
    return login, host


def _asked(dsn: str, *more: str) -> Done:
    return run("status", *more, dsn=dsn, env={"IU_LISTEN_DEADLINE": "6"})


@pytest.mark.parametrize("attributes", ["", "?target_session_attrs=read-write", "?target_session_attrs=prefer-standby"])
def test_the_first_host_is_silent(parts, attributes):
    """The deadline is shared among the hosts: a host that never answers leaves time for the next one."""
    login, host = parts
    with silent() as port:
        done = _asked(f"postgresql://{login}@127.0.0.1:{port},{host}/several{attributes}")
        assert done.code == 0, done.err
        # A host that refuses connections is skipped, too.
        assert _asked(f"postgresql://{login}@127.0.0.1:1,127.0.0.1:{port},{host}/several{attributes}").code == 0


def test_every_host_is_silent(parts):
    """If no host answers, the message names each host with its error."""
    login, _ = parts
    with silent() as port:
        done = _asked(f"postgresql://{login}@127.0.0.1:{port},127.0.0.1:1/several")
        assert done.code == 3
        assert f"127.0.0.1:{port}: no answer in time" in done.err
        assert "127.0.0.1:1: " in done.err
        done = _asked(f"postgresql://{login}@127.0.0.1:{port}/several?connect_timeout=2")
        assert done.code == 3
        assert done.seconds < 5.5


def test_a_consumer_fails_over(parts, own_server):
    """A consumer whose first host does not answer uses the second host, in each of its sessions."""
    login, host = parts
    with silent() as port:
        dsn = f"postgresql://{login}@127.0.0.1:{port},{host}/several"
        with running("run", dsn=dsn, env={"IU_LISTEN_DEADLINE": "4"}) as consumer:
            consumer.until_it_says("listening", timeout=40)
            assert run("emit", dsn=own_server.tcp_dsn("several")).code == 0
            seen(own_server.tcp_dsn("several"), "select exists (select from iu_route_attempt)")
            assert consumer.end() == 0


@pytest.mark.parametrize(
    "parameter",
    ["channel_binding=prefer", "connect_timeout=10", "keepalives=1", "keepalives=0", "keepalives_idle=20",
     "gssencmode=disable", "sslmode=prefer", "application_name=mine", "options=-c%20statement_timeout%3D7s",
     "fallback_application_name=x", "client_encoding=UTF8", "load_balance_hosts=random", "sslsni=1",
     "tcp_user_timeout=5000", "target_session_attrs=primary", "sslnegotiation=postgres", "jit=off"],
)  # fmt: skip
def test_parameters_of_libpq(parts, parameter):
    """Parameters that providers put into their connection strings work."""
    login, host = parts
    done = run("health", "--worker", "nobodys", dsn=f"postgresql://{login}@{host}/several?{parameter}")
    assert (done.code, "not registered" in done.out) == (1, True), done.err


@pytest.mark.parametrize(
    "parameter", ["channel_binding=require", "require_auth=none", "gssencmode=require", "pgbouncer=true"]
)
def test_parameters_that_cannot_be_obeyed(parts, parameter):
    """A parameter that is unsupported or unknown ends with 2 and its name."""
    login, host = parts
    refused(2, parameter.partition("=")[0])("health", dsn=f"postgresql://{login}@{host}/several?{parameter}")


def test_no_session_is_left(parts, own_server):
    """If the role may open no more sessions, the hint names the limit, and not host and port.

    Fails when: every error of connecting counts as an unreachable server.
    """
    _, host = parts
    admin = own_server.tcp_dsn("several")
    execute(admin, "create role iu_test_limited login password 'x' connection limit 0")
    try:
        done = refused(3, "too many connections", "connection limit of the role")(
            "status", dsn=f"postgresql://iu_test_limited:x@{host}/several"
        )
        assert "host and port" not in done.err
    finally:
        execute(admin, "drop role iu_test_limited")


def test_the_pairs_of_libpq(parts):
    """A string of name=value pairs is also a connection string."""
    login, host = parts
    user, _, password = login.partition(":")
    name, _, port = host.partition(":")
    done = run("gate", "show", dsn=f"host={name} port={port} user={user} password='{password}' dbname=several")
    assert done.code == 0, done.err


def test_a_backup_of_one_of_several(parts, tmp_path):
    """A backup uses the same connection string, and is of the same database."""
    login, host = parts
    dsn = f"postgresql://{login}@127.0.0.1:1,{host}/several?statement_timeout=60s&application_name=mine"
    # The worker gate is open, so nothing is applied; the backup comes before that check.
    done = run("apply", "--backup-dir", str(tmp_path), dsn=dsn)
    assert list(tmp_path.glob("several-*.dump")), done.out


@pytest.mark.parametrize("password", UNENCODED)
def test_a_password_without_percent_encoding_is_reported(password):
    """A password that is not percent-encoded ends with 2, and no part of it is shown, from any source of the DSN."""
    dsn = f"postgresql://app:{password}@127.0.0.1/x"
    for done in (
        run("status", "--dsn", dsn),
        run("status", "--json", dsn=dsn),
        run("run", dsn=dsn),
        run("apply", "--no-backup", "x", dsn=dsn),
        run("run", dsn=dsn, env={"IU_LISTEN_LISTEN_DSN": dsn}),
    ):
        if "[" not in password:
            assert done.code == 2, done.err
        for piece in ("S3", "cretPart", "rest@", "31415"):
            assert piece not in done.out + done.err


@pytest.mark.parametrize("port", ["0", "65536", "99999", "54320000", "-1", "x"])
def test_an_invalid_port_is_refused(port):
    """An invalid port ends with 2, in the string and in PGPORT."""
    refused(2, "port")("health", "--wait", "3", dsn=f"postgresql://u@127.0.0.1:{port}/x")
    refused(2, "port")("health", env={"PGHOST": "127.0.0.1", "PGPORT": port})


def test_a_place_that_does_not_exist(tmp_path):
    """A missing service, a missing file and an empty --dsn are errors, and never select another database."""
    refused(2, "no service file contains")("status", env={"PGSERVICE": "shop"})
    refused(2, "no service file contains")("status", dsn="postgresql://?service=shop")
    file = tmp_path / "services"
    file.write_text("[other]\nhost=127.0.0.1\n")
    refused(2, "no service file contains", str(file))("status", env={"PGSERVICE": "shop", "PGSERVICEFILE": str(file)})
    refused(2, "--dsn is empty")("status", "--dsn", "")
    refused(2, "sslrootcert")("status", dsn="postgresql://127.0.0.1/x?sslmode=verify-ca&sslrootcert=/nowhere")
    file.write_text("[shop]\nhost=127.0.0.1\nport=1\npassword=hunter%2\n")
    done = refused(3, "127.0.0.1")("status", env={"PGSERVICE": "shop", "PGSERVICEFILE": str(file)})
    assert "hunter" not in done.err


def test_our_sessions_keep_their_names(parts, own_server):
    """An application_name in the connection string does not replace the names of the consumer's sessions."""
    login, host = parts
    with running("run", dsn=f"postgresql://{login}@{host}/several?application_name=mine") as consumer:
        consumer.until_it_says("listening", timeout=40)
        names = rows(
            own_server.tcp_dsn("several"), "select application_name from pg_stat_activity where datname = 'several'"
        )
        assert "mine" not in {row[0] for row in names}
        assert consumer.end() == 0


@on_one_server
@pytest.mark.parametrize("command", [("run",), ("health",), ("health", "--here")], ids=" ".join)
def test_an_unattended_command_does_not_wait_forever(live, command):
    """The start of a consumer and its health check end with exit code 3 if the database does not answer.

    Fails when: a consumer that a supervisor starts, or a probe, waits for an answer without a limit, as on a path that
    accepts data and forwards none.
    """
    tables = "lock table iu_migration, iu_consumer_heartbeat in access exclusive mode"
    with holding(live.dsn, tables), running(*command, dsn=live.dsn, env={"IU_LISTEN_DEADLINE": "1"}) as started:
        assert started.ended(20) == 3
        assert "the server did not answer within 1 s" in started.said
