"""DBOS queues: `install DSN PURPOSE` or `run DSN PURPOSE`."""

import sys
import threading

from calls import called
from dbos import DBOS

step, dsn, purpose = sys.argv[1:4]
DBOS(
    config={
        "name": "bench",
        "system_database_url": dsn.replace("postgresql:", "postgresql+psycopg:"),
        "application_version": "1",
        "console_log_level": "ERROR",
    }
)


@DBOS.workflow(name="noop")
async def noop(n: int) -> None:
    called(n)


DBOS.launch()
if step == "install":
    DBOS.destroy()
else:
    DBOS.register_queue("bench", worker_concurrency=100, polling_interval_sec=0.01, on_conflict="always_update")
    threading.Event().wait()
