"""The lease of a worker: an advisory lock of the session, or a row if a foreign role holds that lock.

Every role that may connect can take an advisory lock. A foreign role is one without the privileges of a consumer. Its
lock is ignored; consumers then hold a row in iu_delivery_lease instead, which a foreign role cannot write.
"""

from __future__ import annotations

import json
from typing import Final
from uuid import UUID

from iu_listen.model.delivery import Lease
from iu_listen.model.settings import Settings
from iu_listen.postgres.session import Connection, ask, ask_rows
from iu_listen.postgres.sqlfiles import query

#: First key of the advisory lock that is the lease of a worker; the second key is a hash of the worker's name.
LEASE_KEY: Final = 726003


def parse_lease(answer: str) -> Lease:
    """Read the JSON answer of fn_iu_delivery_lease."""
    lease = json.loads(answer)
    return Lease(
        held=lease["held"],
        continuous=lease.get("continuous", False),
        holder=lease.get("holder", ""),
        holder_gone=lease.get("holder_gone", False),
        unclean=lease.get("unclean", False),
    )


def described(holder: str | None) -> str:
    """The text for the lease holder that a query returned; None: its session ended while the query ran."""
    return holder or "a session that has just ended"


class WorkerLease:
    """The lease of one worker, held by one session until the session ends.

    Attributes:
        held_as_row: Whether the lease is held as a row, because a foreign role holds the lock.
    """

    def __init__(self, connection: Connection, settings: Settings, consumer: UUID) -> None:
        self._connection = connection
        self._settings = settings
        self._consumer = consumer
        self._gone_holder: str | None = None
        self.held_as_row: bool = False

    async def take(self) -> str | None:
        """Take the lease, or renew its row.

        Returns:
            None if this session holds the lease; otherwise a description of the lease holder.
        """
        settings = self._settings
        (row,) = await ask_rows(
            self._connection, settings.deadline, query("worker_lease"),
            LEASE_KEY, settings.worker, self._row, self._consumer,
        )  # fmt: skip
        if row["mine"]:
            if self.held_as_row:
                self.held_as_row = False
                await ask(self._connection, settings.deadline, query("delivery/release"), self._row, self._consumer)
            return None
        if not row["all_unauthorized"]:
            return described(row["description"])
        answer = await ask(
            self._connection, settings.deadline, query("delivery/lease"),
            self._row, self._consumer, settings.session_timeout, False, self._gone_holder,
        )  # fmt: skip
        lease = parse_lease(answer)
        self.held_as_row = lease.held
        # A holder is replaced only after it was found without a session at two attempts in a row.
        self._gone_holder = lease.holder if lease.holder_gone else None
        if lease.held:
            return None
        return f"consumer {lease.holder}, although a foreign role holds the lock: {described(row['description'])}"

    @property
    def _row(self) -> str:
        """The name of the row in iu_delivery_lease. No worker has this name."""
        return f"lease of {self._settings.worker}"
