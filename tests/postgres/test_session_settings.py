"""The settings of the sessions of a consumer: names, styles, timeouts, and an identity for each process."""

from __future__ import annotations

import datetime as dt
import os
import warnings
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from iu_listen.app import PostgresSessions
from iu_listen.model.settings import Settings
from iu_listen.postgres.session import session
from postgres.listener_helpers import NO_CATCH_UP, wait_until_armed
from support import WORKER, connected, consuming, insert_event, wait_until

pytestmark = pytest.mark.asyncio


async def test_sessions_have_names_of_purpose_and_worker(live):
    """pg_stat_activity names every session by its purpose and its worker, and none is in a transaction."""
    async with connected(live.dsn) as admin, consuming(live.dsn, completeness_interval=0, **NO_CATCH_UP):
        await wait_until_armed(admin)

        async def sessions() -> Any:
            rows = await admin.fetch(
                """select application_name, state from pg_stat_activity
                    where datname = current_database() and application_name like 'iu-listen%' order by 1"""
            )
            return [tuple(row) for row in rows] == [
                (f"iu-listen listener {WORKER}", "idle"),
                (f"iu-listen monitor {WORKER}", "idle"),
                (f"iu-listen worker {WORKER}", "idle"),
            ]

        await wait_until(sessions, "there is a session for the bell, one for the patrol and one for the work")


async def test_a_session_sets_its_own_styles(live):
    """A session sets time zone, styles and digits itself, regardless of the settings of the database.

    Fails when: a session takes them from the role or the database.
    """
    styles = {
        "TimeZone": ("'America/Sao_Paulo'", "UTC"),
        "DateStyle": ("'SQL, DMY'", "ISO, MDY"),
        "IntervalStyle": ("'sql_standard'", "postgres"),
        "bytea_output": ("'escape'", "hex"),
        "extra_float_digits": ("-15", "1"),
        "quote_all_identifiers": ("on", "off"),
        "standard_conforming_strings": ("off", "on"),
        "transform_null_equals": ("on", "off"),
        "array_nulls": ("off", "on"),
    }
    async with connected(live.dsn) as admin:
        name = await admin.fetchval("select current_database()")
        for setting, (theirs, _) in styles.items():
            await admin.execute(f"alter database {name} set {setting} = {theirs}")
    async with session(live.dsn, name="test") as connection:
        for setting, (_, ours) in styles.items():
            assert await connection.fetchval("select current_setting($1)", setting) == ours


async def test_a_session_knows_the_array_types(live, monkeypatch):
    """Arrays are parameters and results without a question of the driver to the server, which takes several ms.

    Fails when: the types are not registered, or one of them has a wrong OID or element.
    """

    async def asked(*_: Any) -> None:
        raise AssertionError("the driver asks the server for a type")

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", asked)
    now = dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC)
    values = {
        "bool": True, "int": 7, "bigint": 7 << 40, "text": "a, b", "double precision": 0.5, "timestamptz": now,
        "uuid": UUID(int=5),
    }  # fmt: skip
    async with session(live.dsn, name="test") as connection:
        for kind, one in values.items():
            text = await connection.fetchval(f"select $1::{kind}::text", one)
            assert await connection.fetchval(f"select ($1::{kind}[])[2]::text", [None, one]) == text
            assert await connection.fetchval(f"select array[null, $1::{kind}]", one) == [None, one]


async def test_sessions_of_a_dead_host_end_by_idle_session_timeout(live):
    """Both sessions have an idle_session_timeout: that of the worker is the lease, that
    of the bell three of its checks.

    So a host that is gone holds nothing for longer than that.
    """
    sessions = PostgresSessions(Settings.load({}, {"dsn": live.dsn, "session_timeout": 20, "catch_up": 10}))
    show = "select current_setting('idle_session_timeout')"
    async with sessions.worker() as outbox, sessions.listener(lambda _: None) as bell:
        assert await outbox._connection.fetchval(show) == "20s"
        assert await bell._connection.fetchval(show) == "30s"


async def test_the_listener_session_is_read_only(live):
    """The server rejects writes of the listener session.

    The trigger does not see an armed lock of its own session, so an event that this session wrote would send no NOTIFY.

    Fails when: the listener session is not read-only.
    """
    async with PostgresSessions(Settings.load({}, {"dsn": live.dsn})).listener(lambda _: None) as bell:
        assert await bell.arm()
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await insert_event(bell._connection)


async def test_a_forked_process_has_its_own_identity():
    """After a fork the child has another identity and no former sessions, although the object was made before the fork.

    Fails when: the identity is that of the process that made the object.
    """
    sessions = PostgresSessions(Settings())
    consumer, former = sessions._own
    read, write = os.pipe()
    with warnings.catch_warnings():
        # The warning is about threads of the test runner, which the child does not use.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        there, others = sessions._own
        os.write(write, f"{there} {others is former}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    there, shared = os.read(read, 100).decode().split()

    assert (there != str(consumer), shared) == (True, "False")
    assert sessions._own == (consumer, former)
