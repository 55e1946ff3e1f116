"""Shows the events of the stream `shop`, each one once, although JetStream may deliver a message again."""

import asyncio
import sqlite3

import nats
from nats.aio.msg import Msg


def show(message: Msg, database: sqlite3.Connection) -> None:
    """Print a message, unless a message with its id was printed before."""
    headers = message.headers or {}
    # In a real project the work is done in this transaction, too: then it is done once.
    with database:
        new = database.execute("insert or ignore into seen values (?)", (headers["Nats-Msg-Id"],)).rowcount
        if new:
            print(f"{message.subject} {message.data.decode()}", flush=True)


async def main() -> None:
    """Create the stream, and show its messages until Ctrl-C."""
    database = sqlite3.connect("seen.db")
    database.execute("create table if not exists seen (id text primary key)")
    client = await nats.connect("nats://127.0.0.1:4222")
    jetstream = client.jetstream()
    # JetStream itself drops a second message with the same id within this window, in seconds.
    await jetstream.add_stream(name="shop", subjects=["shop.>"], duplicate_window=3600)
    subscription = await jetstream.subscribe("shop.>", durable="show", manual_ack=True)
    print("waiting for events", flush=True)
    async for message in subscription.messages:
        show(message, database)
        await message.ack()


asyncio.run(main())
