"""The bound: NOTIFY, then one durable INSERT, then the call. No routing, no retries, no lease.

For a backlog it reads pages of 1 000 events, calls the handler for each, and records a page by one durable statement.
"""

import asyncio
import sys

import asyncpg
import uvloop
from calls import called

SCHEMA = """
create table if not exists event (n int not null, id bigint generated always as identity primary key);
create table if not exists attempt (n int not null, id bigint generated always as identity primary key,
                                    called_at timestamptz not null default clock_timestamp())
"""
PAGE = "select id, n from event where id > $1 order by id limit 1000"
RECORD = "insert into attempt (n) select unnest($1::int[])"


async def handler(number: int) -> None:
    called(number)


async def main(step: str, dsn: str, purpose: str) -> None:
    connection = await asyncpg.connect(dsn)
    if step == "install":
        await connection.execute(SCHEMA)
    elif purpose == "latency":
        listener = await asyncpg.connect(dsn)
        heard: asyncio.Queue[int] = asyncio.Queue()
        await listener.add_listener("event", lambda *said: heard.put_nowait(int(said[3])))
        insert = await connection.prepare("insert into attempt (n) values ($1)")
        while True:
            number = await heard.get()
            await insert.fetch(number)
            await handler(number)
    else:
        position = 0
        while True:
            page = await connection.fetch(PAGE, position)
            if not page:
                await asyncio.sleep(0.01)
                continue
            for row in page:
                await handler(row["n"])
            await connection.execute(RECORD, [row["n"] for row in page])
            position = page[-1]["id"]


uvloop.run(main(*sys.argv[1:4]))
