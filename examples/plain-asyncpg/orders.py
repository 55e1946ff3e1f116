"""Writes an order and its event in one transaction; a consumer in the same program passes the event to send_mail()."""

import asyncio
import os

import asyncpg

from iu_listen import Consumer, Settings, emit, on


@on("order_placed")
async def send_mail(order: dict[str, int]) -> None:
    """Handle one event; a real project calls its mail server here."""
    print(f"mail about order {order['id']}: {order['total']} EUR", flush=True)


async def place_order(connection: asyncpg.Connection, total: int) -> None:
    """Write the order and its event: both, or neither."""
    async with connection.transaction():
        order = await connection.fetchval("insert into orders (total) values ($1) returning id", total)
        await emit(connection, "order_placed", {"id": order, "total": total}, subject=order)


async def main() -> None:
    """Place three orders, and wait until their events are delivered."""
    dsn = os.environ["IU_LISTEN_DSN"]
    connection = await asyncpg.connect(dsn)
    await connection.execute("create table if not exists orders (id serial primary key, total integer)")
    async with Consumer(Settings(dsn=dsn), targets=[send_mail], wait=30) as consumer:
        for total in (5, 40, 300):
            await place_order(connection, total)
        await consumer.drained(seconds=10)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
