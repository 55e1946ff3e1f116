"""What a session of ours is like on the server: with settings of its own, or of each transaction behind a pooler."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg.transaction import Transaction as _DriverTransaction

from iu_listen.postgres.sqlfiles import query

# Generic in the stubs, not in the driver.
if TYPE_CHECKING:
    _Driver = asyncpg.Connection[asyncpg.Record]
    Prepared = asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]
else:
    _Driver = asyncpg.Connection
    Prepared = asyncpg.prepared_stmt.PreparedStatement

#: Numbers of prepared statements.
_NUMBERS: Final = count(1)

#: Part of the client's patience after which the server ends a statement: what nobody waits for any more piles up.
PATIENCE: Final = 0.9


class Connection(_Driver):
    """A session.

    Behind a transaction pooler every transaction may run in another session of the server, which serves other clients
    afterwards. There nothing is set for a session: each transaction sets what it needs for itself, and what is asked
    outside a transaction gets one of its own.

    Attributes:
        pooled: True: something stands between us and the server, and it told us another pid than the server's own.
        statement_timeout: When the server ends a statement, in its own words; None: as it is set there.
        lock_timeout: How long a statement waits for a lock, the same way.
    """

    pooled = False
    _server_caps: Any
    statement_timeout: str | None = None
    lock_timeout: str | None = None

    async def settle_in(self, *, idle_timeout: str, read_only: bool, transaction_timeout: str | None) -> None:
        """Find out whether there is a pooler in between; if not, set what holds for the session."""
        # In one transaction, so that a pooler in transaction mode answers from one session.
        async with super().transaction():
            self.pooled = await super().fetchval(query("backend_pid")) != self.get_server_pid()
        if self.pooled:
            # The driver switches JIT off and on again for its own look-ups, and that would stay in the pooler.
            self._server_caps = self._server_caps._replace(jit=False)  # type: ignore[has-type, unused-ignore]
        else:
            await super().fetchrow(
                query("session_settings"), idle_timeout, read_only, self.statement_timeout, transaction_timeout
            )

    async def prepare_once(self, statement: str) -> str | Prepared:
        """A statement that the server parses and plans once for this session.

        Behind a pooler it stays a text: the next transaction may run in a session that does not know it.

        Args:
            statement: Its text.

        Returns:
            What fetch() of it needs; the text itself behind a pooler.
        """
        if self.pooled:
            return statement
        # The driver keeps a statement without a name only for one execution where its own cache is off.
        return await super().prepare(statement, name=f"iu_listen_{next(_NUMBERS)}")

    async def limit_locks(self, milliseconds: int) -> None:
        """Wait so long for a lock from now on, at most."""
        self.lock_timeout = f"{milliseconds}ms"
        if not self.pooled:
            await super().fetchrow(query("lock_timeout"), self.lock_timeout)

    def transaction(self, **options: Any) -> _DriverTransaction:
        """As the driver's; behind a pooler with settings of its own."""
        outermost = self.pooled and not self.is_in_transaction()
        return _PooledTransaction(self, options) if outermost else super().transaction(**options)

    @property
    def _alone(self) -> bool:
        return self.pooled and not self.is_in_transaction()

    async def fetch(self, *args: Any, **options: Any) -> Any:
        """As the driver's."""
        if not self._alone:
            return await super().fetch(*args, **options)
        async with self.transaction():
            return await super().fetch(*args, **options)

    async def fetchrow(self, *args: Any, **options: Any) -> Any:
        """As the driver's."""
        if not self._alone:
            return await super().fetchrow(*args, **options)
        async with self.transaction():
            return await super().fetchrow(*args, **options)

    async def fetchval(self, *args: Any, **options: Any) -> Any:
        """As the driver's."""
        if not self._alone:
            return await super().fetchval(*args, **options)
        async with self.transaction():
            return await super().fetchval(*args, **options)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As the driver's. Without parameters it is sent as it is: BEGIN, and what forbids a transaction."""
        if not (args and self._alone):
            return await super().execute(query, *args, timeout=timeout)
        async with self.transaction():
            return await super().execute(query, *args, timeout=timeout)

    async def set_for_transaction(self) -> None:
        """The settings of a transaction in a session that is not ours."""
        await super().fetchrow(query("transaction_settings"), self.statement_timeout, self.lock_timeout)


class _PooledTransaction(_DriverTransaction):
    """A transaction that begins with its own settings."""

    def __init__(self, connection: Connection, options: dict[str, Any]) -> None:
        known = {"isolation": None, "readonly": False, "deferrable": False} | options
        super().__init__(connection, **known)
        self._session = connection

    async def start(self) -> None:
        await super().start()
        try:
            await self._session.set_for_transaction()
        except BaseException:
            if not self._session.is_closed():
                await self.rollback()
            raise
