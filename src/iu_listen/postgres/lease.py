"""A lease that is an advisory lock of the session, and what is done where a stranger holds that lock.

Anybody who may connect can take an advisory lock. A stranger is a role that could do none of our work; its lock counts
for nothing, and consumers hold a row in iu_delivery_lease instead, which a stranger cannot write.
"""

from __future__ import annotations

import json
from typing import Final
from uuid import UUID

from iu_listen.model.delivery import Lease
from iu_listen.model.settings import Settings
from iu_listen.postgres.session import Connection, ask, ask_rows
from iu_listen.postgres.sqlfiles import query

#: First key of the advisory lock that is a worker's lease; the second is a hash of its name.
LEASE_KEY: Final = 726003


class WorkerLease:
    """The lease of one worker, held by one session for its life.

    Attributes:
        around: True: a stranger holds the lock, and the row is held instead.
    """

    def __init__(self, connection: Connection, settings: Settings, consumer: UUID) -> None:
        self._connection = connection
        self._settings = settings
        self._consumer = consumer
        self._gone: str | None = None
        self.around = False

    async def take(self) -> str | None:
        """Take it, or renew the row that stands for it. None: it is ours. Else: who has it."""
        settings = self._settings
        (row,) = await ask_rows(
            self._connection, settings.deadline, query("worker_lease"),
            LEASE_KEY, settings.worker, self._row, self._consumer,
        )  # fmt: skip
        if row["mine"]:
            if self.around:
                self.around = False
                await ask(self._connection, settings.deadline, query("delivery/release"), self._row, self._consumer)
            return None
        if not row["strangers"]:
            return str(row["words"])
        answer = await ask(
            self._connection, settings.deadline, query("delivery/lease"),
            self._row, self._consumer, settings.lease, False, self._gone,
        )  # fmt: skip
        lease = Lease(**json.loads(answer))
        self.around = lease.held
        # A holder whose session has gone is named twice before it is replaced.
        self._gone = lease.holder if lease.gone else None
        return None if lease.held else f"consumer {lease.holder}, beside {row['words']}"

    @property
    def _row(self) -> str:
        """The name of the row, which no worker has."""
        return f"lease of {self._settings.worker}"
