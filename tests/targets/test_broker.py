"""The shared connection of a target (Link), tested with a simulated connection."""

from __future__ import annotations

import re
import ssl
import sys
import time
from pathlib import Path

import anyio
import pytest

from iu_listen.model.delivery import Failed, Result, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.outcome import outcome_of
from iu_listen.targets import Targets, kafka, nats, redis
from iu_listen.targets.broker import CLOSE_TIMEOUT, COMMON_OPTIONS, CONNECT_ERRORS, SharedConnection, outcome_for


class CommandContext:
    """A simulated connection: connects as soon as the test allows it, and returns the next number."""

    def __init__(self) -> None:
        self.open = anyio.Event()
        self.tries = 0
        self.failure: Exception | None = None
        self.closed: list[int] = []

    async def connect(self) -> int:
        self.tries += 1
        await self.open.wait()
        if self.failure:
            raise self.failure
        return self.tries

    async def close(self, connection: int) -> None:
        self.closed.append(connection)

    def link(self, timeout: float = 5.0) -> SharedConnection[int]:
        return SharedConnection(self.connect, self.close, timeout)


async def results(link: SharedConnection[int], count: int, door: CommandContext) -> list[tuple[Result, str]]:
    """The outcomes of many simultaneous users, who all wait for the connection before it is allowed."""
    found: list[tuple[Result, str]] = []

    async def use() -> None:
        error: Exception | None = None
        try:
            async with link.use():
                pass
        except Exception as raised:
            error = raised
        found.append(outcome_of(error)[:2])

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(use)
        await anyio.wait_all_tasks_blocked()
        door.open.set()
    return found


@pytest.mark.asyncio
async def test_one_connects_for_all():
    """50 simultaneous users cause one attempt to connect, and later users share the connection.

    Fails when: each user connects separately.
    """
    door = CommandContext()
    link = door.link()

    assert await results(link, 50, door) == [(Result.SENT, "")] * 50
    async with link.use() as connection:
        assert connection == door.tries == 1


@pytest.mark.asyncio
async def test_one_failure_is_the_failure_of_all():
    """50 simultaneous users cause one attempt, whose failure is that of all; a moment later there is a new attempt.

    Fails when: a failure is not remembered, or is remembered for ever.
    """
    door = CommandContext()
    door.failure = Failed("no such topic", code="no_topic")
    link = door.link()

    assert await results(link, 50, door) == [(Result.FAILED, "no_topic")] * 50
    assert door.tries == 1
    door.failure = None
    with anyio.fail_after(5):
        while await results(link, 1, door) != [(Result.SENT, "")]:
            await anyio.sleep(0.01)
    assert door.tries == 2


@pytest.mark.asyncio
async def test_connecting_has_an_end():
    """A user that waits for the connection gets Unavailable after the connect timeout of the link.

    Fails when: connecting is not bounded.
    """
    link = CommandContext().link(0.05)

    with anyio.fail_after(2), pytest.raises(Unavailable) as raised:
        async with link.use():
            pass
    assert raised.value.code == "connect"


@pytest.mark.asyncio
async def test_a_lost_connection_is_lost_for_all_who_use_it():
    """When the connection is lost, its users get Unavailable at once, and the next user gets a new connection.

    Fails when: users are not notified, or the loss of an old connection ends the new one.
    """
    door = CommandContext()
    door.open.set()
    link = door.link()
    codes = []

    async def wait() -> None:
        try:
            async with link.use():
                await anyio.sleep(30)
        except Unavailable as error:
            codes.append(error.code)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await link.drop(1)
        async with link.use() as connection:
            link.lost(1)
            await anyio.sleep(0)
            assert connection == 2
    assert codes == ["connect"] * 3
    assert door.closed == [1]


@pytest.mark.asyncio
async def test_a_goodbye_has_an_end():
    """Closing a connection that does not respond is given up after two seconds, also if the caller is cancelled.

    Fails when: closing is not bounded, or not shielded from cancellation.
    """
    door = CommandContext()
    door.open.set()
    ended = []

    async def close(connection: int) -> None:
        try:
            await anyio.sleep(30)
        finally:
            ended.append(connection)

    link: SharedConnection[int] = SharedConnection(door.connect, close, 5.0)
    async with link.use():
        pass
    began = time.monotonic()
    with anyio.move_on_after(0):
        await link.aclose()

    assert ended == [1]
    assert CLOSE_TIMEOUT - 0.1 < time.monotonic() - began < CLOSE_TIMEOUT + 1


def test_an_error_means_what_it_was_raised_from():
    """An error of a library that is caused by a certificate error is classified as a certificate error.

    Fails when: only the outermost error is examined.
    """
    try:
        try:
            raise ssl.SSLCertVerificationError("secret")
        except OSError:
            raise ConnectionError("secret")  # noqa: B904 libraries do
    except ConnectionError as error:
        found = outcome_for(error, CONNECT_ERRORS)

    assert (type(found), found.code) == (Unavailable, "tls")
    assert "secret" not in found.reason


@pytest.mark.parametrize(
    ("address", "library", "extra"),
    [
        ("kafka://host/x", "aiokafka", "kafka"),
        ("nats://host/x", "nats", "nats"),
        ("tls://host/x", "nats", "nats"),
        ("valkeys://host/0?stream=x", "redis", "redis"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch, address, library, extra):
    """The error for a scheme whose library is not installed names the extra that installs it.

    Fails when: an entry point does not name its extra.
    """
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"iu_listen.targets.{extra}", raising=False)

    with pytest.raises(ConfigurationError, match=library) as raised:
        Targets(allow_private="127.0.0.0/8,::1").find("external_endpoint", address, {})
    assert raised.value.hint == f"pip install 'iu-listen[{extra}]'"


def test_every_option_and_code_is_documented():
    """The page lists every option of every target with its default, and every code of the tables of answers.

    Fails when: an option or a code is added, or a default is changed, without the page.
    """
    page = (Path(__file__).parents[2] / "docs/how-to/brokers.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (all|NATS|Redis|Kafka) \|([^|]*)\|", page, re.MULTILINE)
    documented = {(who, name): default.strip(" `") for name, who, default in rows}
    expected = {("all", name): option.default for name, option in COMMON_OPTIONS.items()}
    for who, options in (("NATS", nats.NATS_OPTIONS), ("Redis", redis.REDIS_OPTIONS), ("Kafka", kafka.KAFKA_OPTIONS)):
        expected |= {(who, name): o.default for name, o in options.items() if name not in COMMON_OPTIONS}

    assert documented.keys() == expected.keys()
    for key, default in expected.items():
        words = "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
        assert documented[key] in {words, words.lower(), "those of the system"}, key
    tables = [*nats.NATS_CONNECT_ERRORS, *nats.PUBLISH_ERRORS, *redis.REDIS_ERRORS, *kafka.KAFKA_ERRORS]
    codes = (
        {m.code for m in tables}
        | {code for _, code, _ in nats.STREAM_ERRORS.values()}
        | {a[2] for a in redis.REDIS_ANSWERS}
    )
    assert {code for code in codes if f"`{code}`" not in page} == set()
