"""The example nats-relay, with a NATS server of its own."""

from __future__ import annotations

import asyncio
import shutil

import nats
import pytest

from cli.command import on_one_server
from example_projects.readme import project
from targets.brokers import free_port

SERVICES = {
    "nats-server": "Server is ready",
    "python subscriber.py": "waiting for events",
    "iu-listen run": "listening",
}


async def forget_what_was_shown(port: int) -> None:
    """Let JetStream deliver every message of the stream again."""
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    try:
        assert await client.jetstream().delete_consumer("shop", "show")
    finally:
        await client.close()


@pytest.mark.skipif(shutil.which("nats-server") is None, reason="there is no nats-server on PATH")
@on_one_server
def test_the_commands_of_the_page(empty, tmp_path):
    """The relay delivers an event to JetStream, and the subscriber shows it once, also if JetStream delivers it again.

    Fails when: a command is missing from the page, or the subscriber does not compare the ids of messages.
    """
    port = free_port()
    with project("nats-relay", tmp_path, empty.dsn, {"4222": str(port)}) as relay:
        *page, end = relay.commands
        relay.play(page, SERVICES)
        relay.run("kill %2")
        asyncio.run(forget_what_was_shown(port))
        relay.run("python subscriber.py &")
        relay.run("iu-listen emit --type order_placed --payload '{\"order\": 2}'")
        relay.until_it_says('shop.order_placed {"order": 2}')
        assert relay.said.count('shop.order_placed {"order": 1') == 1
        relay.run(end.text.replace("%2", "%4"))
