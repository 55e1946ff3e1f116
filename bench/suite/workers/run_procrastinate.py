"""procrastinate: `install DSN PURPOSE` or `run DSN PURPOSE`."""

import sys

import uvloop
from calls import called
from procrastinate import App, PsycopgConnector

step, dsn, purpose = sys.argv[1:4]
app = App(connector=PsycopgConnector(conninfo=dsn, min_size=4, max_size=10))


@app.task(name="noop")
async def noop(n: int) -> None:
    called(n)


async def main() -> None:
    async with app.open_async():
        if step == "install":
            await app.schema_manager.apply_schema_async()
        else:
            await app.run_worker_async(concurrency=100 if purpose == "throughput" else 10)


uvloop.run(main())
