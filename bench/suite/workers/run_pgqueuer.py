"""pgqueuer: `install DSN PURPOSE` or `run DSN PURPOSE`."""

import sys

import asyncpg
import uvloop
from calls import called
from pgqueuer import AsyncpgPoolDriver, PgQueuer, Queries


async def main(step: str, dsn: str, purpose: str) -> None:
    driver = AsyncpgPoolDriver(await asyncpg.create_pool(dsn, min_size=4, max_size=10))
    if step == "install":
        await Queries(driver).install()
        return
    pgq = PgQueuer(driver)

    @pgq.entrypoint("noop")
    async def noop(job) -> None:
        called(int(job.payload))

    concurrency = 100 if purpose == "throughput" else 10
    await pgq.run(batch_size=concurrency, max_concurrent_tasks=2 * concurrency)


uvloop.run(main(*sys.argv[1:4]))
