"""The plugin of pytest, as the tests of an application use it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command import environment, execute, on_one_server, rows
from clusters import place
from iu_listen.testing.databases import Databases
from iu_listen.testing.outbox import Outbox, explain

SHOP = """
from dataclasses import dataclass

from iu_listen import on


@dataclass
class Order:
    total: float


@on("order_placed")
def send_mail(order: Order) -> None:
    if order.total == 13:
        raise ValueError("unlucky")
"""
#: A test of an application: the eight lines of docs/how-to/test.md.
TEST = """
import asyncpg
from iu_listen import emit


async def test_an_order_sends_a_mail(iu_outbox):
    connection = await asyncpg.connect(iu_outbox.dsn)
    await emit(connection, "order_placed", {"total": 5})
    await connection.close()
    await iu_outbox.drain()
    await iu_outbox.assert_emitted("order_placed", {"total": 5}, count=1)
    await iu_outbox.assert_delivered("order_placed.send_mail", {"total": 5})
"""
MORE = r"""

import asyncio

import pytest

async def test_each_test_has_an_empty_outbox(iu_outbox):
    assert await iu_outbox.emitted() == []

async def test_a_dead_letter(iu_outbox):
    connection = await asyncpg.connect(iu_outbox.dsn)
    await emit(connection, "order_placed", {"totl": 5}, subject=7)
    await connection.close()
    (decided,) = await iu_outbox.drain()
    assert (decided.event.subject, decided.status, decided.dead_letter) == ("7", "failed", True)
    await iu_outbox.assert_dead_lettered("order_placed.send_mail", "invalid_payload", count=1)

async def test_assertions_fail(iu_outbox):
    for wrong in (
        iu_outbox.assert_emitted("order_placed"),
        iu_outbox.assert_delivered("order_placed.send_mail"),
        iu_outbox.assert_dead_lettered("order_placed.send_mail"),
        iu_outbox.assert_emitted("order_placed", count=1),
    ):
        with pytest.raises(AssertionError, match="found 0"):
            await wrong

async def test_a_failed_attempt_is_explained(iu_outbox, capsys):
    connection = await asyncpg.connect(iu_outbox.dsn)
    await emit(connection, "order_placed", {"total": 13})
    await connection.close()
    (decided,) = await iu_outbox.drain()
    assert (decided.failure_code, decided.failure_detail) == ("target_error", "ValueError (shop.py, line 15)")
    assert "in send_mail" in decided.traceback and "anyio" not in decided.traceback
    assert decided.traceback in capsys.readouterr().err
    with pytest.raises(AssertionError) as error:
        await iu_outbox.assert_delivered("order_placed.send_mail")
    assert "dead letter, target_error: ValueError (shop.py, line 15)" in str(error.value)
    assert "ValueError: unlucky" in str(error.value)

async def test_a_mistyped_route_is_an_error(iu_outbox):
    with pytest.raises(AssertionError, match="no route order_placed.send_mial; routes: order_placed.send_mail$"):
        await iu_outbox.assert_delivered("order_placed.send_mial", count=0)
    with pytest.raises(AssertionError, match="no route x; routes"):
        await iu_outbox.assert_dead_lettered("x", count=0)

async def test_a_handler_that_does_not_end(iu_outbox):
    from iu_listen import on

    @on("order_placed")
    async def endless(order: dict) -> None:
        await asyncio.sleep(30)

    connection = await asyncpg.connect(iu_outbox.dsn)
    await emit(connection, "order_placed", {"total": 6})
    await connection.close()
    with pytest.raises(AssertionError, match=r"deliveries still wait after 0\.3 s"):
        await iu_outbox.drain(endless, seconds=0.3)

async def test_a_mistyped_type(iu_outbox):
    connection = await asyncpg.connect(iu_outbox.dsn)
    try:
        await emit(connection, "order_plced", {"total": 5})
    finally:
        await connection.close()

async def test_a_handler_of_the_test(iu_outbox):
    from iu_listen import on
    seen = []

    @on("order_placed")
    async def other(order: dict) -> None:
        seen.append(order)

    connection = await asyncpg.connect(iu_outbox.dsn)
    await emit(connection, "order_placed", {"total": 6})
    await connection.close()
    assert [d.route for d in await iu_outbox.drain(other)] == ["order_placed.other", "order_placed.send_mail"]
    assert seen == [{"total": 6}]
    await iu_outbox.assert_emitted("order_placed", {"total": 6})
"""
SETTINGS = "[pytest]\niu_listen_app = shop\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"


@pytest.mark.slow
def test_a_test_of_an_application(tmp_path: Path):
    """Tests of an application pass with the fixture iu_outbox; each has an outbox of its own, and assertions can fail.

    A test that fails for an event type that no handler has is explained in its report. A directory outside of those of
    pytest keeps its mode.
    Fails when: the plugin is not found by its entry point, tests share a database, drain() returns too early, or the
    reason of a failed attempt is missing.
    """
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TEST + MORE)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    with place() as above:
        above.chmod(0o711)
        options = ["-q", "-W", "error", "-p", "no:cacheprovider", "--basetemp", above / "base"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=tmp_path, env=environment(str(tmp_path)), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert above.stat().st_mode & 0o777 == 0o711
    assert "1 failed, 8 passed" in done.stdout, done.stdout + done.stderr
    assert "No handler has the event type order_plced. Event types of the handlers: order_placed." in done.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "event type order_plced is not registered and active\nHINT: Register it",
            "iu_listen_app in the configuration",
        ),
        ("another error", ""),
    ],
)
def test_a_missing_setting_is_named(text, says):
    """Without handlers no event type is registered, and the report of a test names the missing setting."""
    explained = explain(Outbox("postgresql://"), text)
    assert says in explained
    assert bool(says) == bool(explained)


def test_the_page_has_the_test():
    """docs/how-to/test.md shows the test that passes here, in at most ten lines of code."""
    page = (Path(__file__).parents[2] / "docs/how-to/test.md").read_text()
    assert TEST.strip() in page
    assert len([line for line in TEST.splitlines() if line]) <= 10


@on_one_server
def test_the_next_database_is_made_while_a_test_runs(server):
    """A database is made ahead, so that no test but the first waits for it, and it is dropped in the background.

    Fails when: take() makes the database at the moment of the call, or the databases of earlier tests stay.
    """

    def names() -> set[str]:
        return {row[0] for row in rows(server.admin, "select datname from pg_database where datname like 'iu\\_%'")}

    def wait_for(fits: Callable[[set[str]], bool]) -> set[str]:
        until = time.monotonic() + 20
        while not fits(found := names()):
            assert time.monotonic() < until, found
            time.sleep(0.02)
        return found

    template = server.template("base")
    before = names()
    with Databases(server.embedded, template) as databases:
        first = databases.take()
        (ahead,) = wait_for(lambda found: len(found - before) == 2) - before - {first}
        assert databases.take() == ahead
        databases.drop(first)
        databases.drop(ahead)
        (last,) = wait_for(lambda found: not {first, ahead} & found) - before
    execute(server.admin, f"drop database {last} with (force)")
