"""faststream-outbox: `install DSN PURPOSE` or `run DSN PURPOSE`."""

import logging
import sys

import uvloop
from calls import called
from faststream import FastStream
from faststream_outbox import OutboxBroker, make_outbox_table
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

step, dsn, purpose = sys.argv[1:4]
metadata = MetaData()
table = make_outbox_table(metadata, table_name="outbox")
engine = create_async_engine(dsn.replace("postgresql:", "postgresql+asyncpg:"), pool_size=20)
broker = OutboxBroker(engine, outbox_table=table, logger=None)
batches = {"max_workers": 10, "fetch_batch_size": 500, "terminal_flush_batch_size": 100}


@broker.subscriber("noop", **(batches if purpose == "throughput" else {"max_workers": 10}))
async def noop(n: int) -> None:
    called(n)


async def main() -> None:
    if step == "install":
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
    else:
        await FastStream(broker, logger=None).run(log_level=logging.ERROR)


uvloop.run(main())
