"""After the promotion of a standby that is behind, the storm's model is adapted to the history that remains.

An asynchronous standby may lack the last transactions, although their producers were told that they are committed. These
transactions are lost. For all others, the promoted server must agree with the model.
"""

from __future__ import annotations

import time
from itertools import islice

from storm.environment import Environment
from storm.model import Model, Transaction, TransactionState

FOUND_TRANSACTIONS = """
    select t.n
      from unnest($1::uuid[], $2::uuid[]) with ordinality t(low, high, n)
     where exists (select from event_outbox o where o.id between t.low and t.high and o.event_domain = 'iu')
"""


class SurvivingHistory:
    """The transactions that the promoted server may lack.

    Args:
        model: The model of the storm. Create this object before the standby stops following.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._undecided = [
            tx for tx in model.transactions.values() if tx.state in (TransactionState.OPEN, TransactionState.UNKNOWN)
        ]
        self._known = len(model.transactions)

    async def mark_lost_transactions(self, environment: Environment) -> int:
        """Mark committed transactions that the promoted server lacks as Fate.GONE, and return their number.

        The time of the promotion is appended to ``environment.notes["promotions"]``: earlier calls of the target are over.
        """
        environment.notes.setdefault("promotions", []).append(time.monotonic_ns())
        await self._end_prepared(environment)
        asked = [tx for tx in self._affected() if tx.state is TransactionState.COMMITTED and tx.counting]
        rows = await environment.rows(
            FOUND_TRANSACTIONS, [tx.event(0) for tx in asked], [tx.event(2**64 - 1) for tx in asked]
        )
        found = {row["n"] for row in rows}
        gone = [tx for n, tx in enumerate(asked, 1) if n not in found]
        for tx in gone:
            tx.state = TransactionState.LOST_BY_PROMOTION
        return len(gone)

    def _affected(self) -> list[Transaction]:
        return [*self._undecided, *islice(self._model.transactions.values(), self._known, None)]

    async def _end_prepared(self, environment: Environment) -> None:
        """End transactions again that ended after the standby stopped following, and so are still prepared there."""
        assert environment.producers is not None
        waiting = {p.tx.gid for p in environment.producers.prepared}
        ended = {tx.gid: tx for tx in self._affected() if tx.gid and tx.gid not in waiting}
        for row in await environment.rows("select gid from pg_prepared_xacts"):
            if tx := ended.get(row["gid"]):
                how = "commit" if tx.state is TransactionState.COMMITTED else "rollback"
                await environment.rows(f"{how} prepared '{tx.gid}'")
