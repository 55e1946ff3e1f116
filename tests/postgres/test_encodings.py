"""Databases with an encoding other than UTF-8: the package works, and a text that does not
fit affects one delivery only."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from cli.command import on_one_server, run
from iu_listen import Delivery, Reject
from postgres.delivery_helpers import RecordingTarget, delivering, open_route, wait_until_settled
from support import connected

pytestmark = [pytest.mark.asyncio, on_one_server]


@dataclass
class Odd:
    """A database, its encoding, and a text that fits."""

    dsn: str
    encoding: str
    fits: str


@pytest.fixture(params=[("LATIN1", "é"), ("EUC_JP", "鍵"), ("WIN1252", "€")], ids=lambda p: p[0])
def odd(server, request) -> Iterator[Odd]:
    """A database with another encoding, with the package applied by the command and the worker gate open."""
    encoding, fits = request.param
    with _database(server, encoding) as dsn:
        done = run("apply", "--base", "--no-backup", "a test", dsn=dsn)
        assert done.code == 0, done.out + done.err
        assert run("gate", "open", "worker", dsn=dsn).code == 0
        yield Odd(dsn, encoding, fits)


@pytest.fixture
def undecodable(server) -> Iterator[str]:
    """A database that accepts any bytes as text."""
    with _database(server, "SQL_ASCII") as dsn:
        yield dsn


@contextmanager
def _database(server, encoding: str) -> Iterator[str]:
    name = f"iu_test_{secrets.token_hex(6)}"
    server.execute(f"create database {name} template template0 encoding '{encoding}' locale 'C'")
    try:
        yield server.dsn(name)
    finally:
        server.execute(f"drop database if exists {name} with (force)")


#: Events about these addresses.
WRITE = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address)
    select 'iu', 'version_applied', 'update', 'immediate', x from unnest($1::text[]) x
"""


async def _fail(delivery: Delivery) -> None:
    if delivery.event.subject == "fails":
        raise Reject("broken: 🔑")


async def test_events_of_another_encoding_are_delivered(odd):
    """Events that the encoding can hold are routed and delivered; an error text that it
    cannot hold affects its event only.

    Fails when: a file of the package has a character that is not ASCII.
    """
    recording = RecordingTarget(_fail)
    async with connected(odd.dsn) as connection:
        await open_route(connection, attempts=1)
        await connection.execute(WRITE, [odd.fits, "fails", "a/b"])
        async with delivering(odd.dsn, recording.target()):
            await wait_until_settled(connection)
        letters = await connection.fetch(
            "select event_snapshot ->> 'canonical_address', failure_code, failure_detail from iu_route_dead_letter"
        )
    assert [(subject, code) for subject, code, _ in letters] == [("fails", "outcome_refused")]
    assert sorted(call.event.subject for call in recording.calls) == sorted([odd.fits, "fails", "a/b"])
    for command in ("status", "doctor", "attempts", "dead-letter list"):
        assert run(*command.split(), dsn=odd.dsn).code == 0, command


async def test_a_text_that_the_encoding_cannot_hold_is_refused(odd):
    """A text that the database cannot hold is refused with an error about the encoding, not about JSON."""
    done = run("emit", "--address", "🔑", dsn=odd.dsn)
    assert done.code == 2
    assert f'no equivalent in encoding "{odd.encoding}"' in done.err
    assert "JSON" not in done.err


async def test_apply_refuses_the_encoding_sql_ascii(undecodable):
    """apply refuses SQL_ASCII, which accepts bytes of no encoding, at preflight check 1, and creates nothing.

    Fails when: preflight check 1 does not read the encoding.
    """
    done = run("apply", "--base", "--no-backup", "a test", dsn=undecodable)
    assert done.code == 1, done.out + done.err
    assert "encoding SQL_ASCII" in done.out
    async with connected(undecodable) as connection:
        assert await connection.fetchval("select to_regclass('public.event_outbox')") is None
