"""awa: `install DSN PURPOSE` or `run DSN PURPOSE`."""

import asyncio
import sys
from dataclasses import dataclass

import awa
from calls import called


@dataclass
class Noop:
    n: int


async def main(step: str, dsn: str, purpose: str) -> None:
    client = awa.AsyncClient(dsn, max_connections=20)
    if step == "install":
        await awa.migrate(dsn)
        # Without this call it keeps the older storage, which sends no NOTIFY.
        await client.install_queue_storage()
        return

    @client.task(Noop, kind="noop", queue="bench")
    async def noop(job) -> None:
        called(job.args.n)

    await client.start([("bench", 100 if purpose == "throughput" else 10)])
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:4]))
