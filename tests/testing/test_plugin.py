"""The plugin of pytest, as the tests of an application use it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.command import environment

SHOP = """
from dataclasses import dataclass

from iu_listen import on


@dataclass
class Order:
    total: float


@on("order_placed")
def send_mail(order: Order) -> None:
    pass
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
MORE = """

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

    Fails when: the plugin is not found by its entry point, tests share a database, or drain() returns too early.
    """
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TEST + MORE)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--durations=0", "-p", "no:cacheprovider"],
        cwd=tmp_path, env=environment(str(tmp_path)), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_the_page_has_the_test():
    """docs/how-to/test.md shows the test that passes here, in at most ten lines of code."""
    page = (Path(__file__).parents[2] / "docs/how-to/test.md").read_text()
    assert TEST.strip() in page
    assert len([line for line in TEST.splitlines() if line]) <= 10
