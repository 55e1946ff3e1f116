"""Databases whose encoding is not UTF-8: the package is applied, routes and delivers, and an odd text is one outcome."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cli.command import on_one_server, run
from iu_listen import Delivery, Reject
from postgres.couriers import Arrivals, delivering, open_route, settled
from support import connected

pytestmark = [pytest.mark.asyncio, on_one_server]


@dataclass
class Odd:
    """A database and what it can hold: a text that fits, and its encoding."""

    dsn: str
    encoding: str
    fits: str


@pytest.fixture(params=[("LATIN1", "é"), ("EUC_JP", "鍵"), ("WIN1252", "€"), ("SQL_ASCII", "é")], ids=lambda p: p[0])
def odd(server, request) -> Iterator[Odd]:
    """A database of another encoding, with the package applied by the command, through all gates."""
    encoding, fits = request.param
    name = f"iu_test_{secrets.token_hex(6)}"
    server.execute(f"create database {name} template template0 encoding '{encoding}' locale 'C'")
    try:
        done = run("apply", "--base", "--no-backup", "a test", dsn=server.dsn(name))
        assert done.code == 0, done.out + done.err
        assert run("gate", "open", "worker", dsn=server.dsn(name)).code == 0
        yield Odd(server.dsn(name), encoding, fits)
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


async def test_another_encoding(odd):
    """What the encoding holds is routed and delivered; an error text that it does not hold costs its own event only.

    Fails when: a file of the package has a character that is not ASCII.
    """
    arrivals = Arrivals(_fail)
    async with connected(odd.dsn) as connection:
        await open_route(connection, attempts=1)
        await connection.execute(WRITE, [odd.fits, "fails", "a/b"])
        async with delivering(odd.dsn, arrivals.target()):
            await settled(connection)
        letters = await connection.fetch(
            "select event_snapshot ->> 'canonical_address', failure_code, failure_detail from iu_route_dead_letter"
        )
    holds = odd.encoding == "SQL_ASCII"
    assert [(subject, code) for subject, code, _ in letters] == [("fails", "reject" if holds else "outcome_refused")]
    assert sorted(call.event.subject for call in arrivals.calls) == sorted([odd.fits, "fails", "a/b"])
    for command in ("status", "doctor", "attempts", "dead-letter list"):
        assert run(*command.split(), dsn=odd.dsn).code == 0, command


async def test_what_it_cannot_hold(odd):
    """A text that the database cannot hold is refused, and the text that it is about is not called JSON."""
    done = run("emit", "--address", "🔑", dsn=odd.dsn)
    if odd.encoding == "SQL_ASCII":
        assert done.code == 0
    else:
        assert done.code == 2
        assert f'no equivalent in encoding "{odd.encoding}"' in done.err
        assert "JSON" not in done.err
