"""A database session with its settings: set once for the session, or in each transaction behind a pooler."""

from __future__ import annotations

import contextlib
from itertools import count
from typing import Any, Final

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement as Prepared
from asyncpg.transaction import Transaction as _DriverTransaction

from iu_listen.postgres.sqlfiles import query

#: Numbers for the names of prepared statements.
_STATEMENT_NUMBERS: Final = count(1)

#: The array types of parameters and results: their OIDs, which PostgreSQL never changes, names and element types.
_ARRAYS: Final = (
    (1000, "_bool", 16), (1007, "_int4", 23), (1016, "_int8", 20), (1009, "_text", 25), (1022, "_float8", 701),
    (1185, "_timestamptz", 1184), (2951, "_uuid", 2950),
)  # fmt: skip
#: The same, as rows of the query by which the driver asks the server for a type.
_ARRAY_TYPES: Final = [
    {"oid": oid, "ns": "pg_catalog", "name": name, "kind": b"b", "basetype": None, "elemtype": element,
     "elemdelim": ",", "range_subtype": None, "attrtypoids": None}
    for oid, name, element in _ARRAYS
]  # fmt: skip

#: Fraction of the client's deadline after which the server cancels a statement, so that statements for which no client
#: waits any more do not accumulate on the server.
SERVER_TIMEOUT_SHARE: Final = 0.9


class Connection(asyncpg.Connection):
    """A database session.

    Behind a transaction pooler each transaction may run in another session of the server, which then serves other
    clients. In that case no setting is made for the session: each transaction makes its own settings, and a statement
    outside a transaction gets a transaction of its own.

    Attributes:
        pooled: Whether a pooler is between the client and the server. A pooler reports another process id at the
            start of the session than the server itself reports.
        statement_timeout: Time after which the server cancels a statement, as text with a unit (``500ms``); None keeps
            the server's setting.
        lock_timeout: Longest wait of a statement for a lock, as text with a unit (``500ms``); None keeps the server's
            setting.
    """

    pooled: bool = False
    _server_caps: Any
    _protocol: Any
    statement_timeout: str | None = None
    lock_timeout: str | None = None

    async def settle_in(self, *, idle_timeout: str, read_only: bool, transaction_timeout: str | None) -> None:
        """Detect a pooler; without one, make the settings of the session.

        Args:
            idle_timeout: Idle time after which the server ends the session, as text with a unit.
            read_only: Whether the server refuses writes.
            transaction_timeout: Longest duration of a transaction, as text with a unit; None keeps the server's
                setting.
        """
        # Otherwise the driver asks the server at the first use of each array type, which takes longer than to open the
        # session. Without this method, a later version of the driver asks again.
        with contextlib.suppress(AttributeError, LookupError, TypeError):
            self._protocol.get_settings().register_data_types(_ARRAY_TYPES)
        # The query runs in a transaction, so that a pooler in transaction mode uses one session of the server for it.
        async with super().transaction():
            self.pooled = await super().fetchval(query("backend_pid")) != self.get_server_pid()
        if self.pooled:
            # For its own catalog queries the driver switches JIT off and on again, which would change pooled sessions.
            self._server_caps = self._server_caps._replace(jit=False)  # type: ignore[has-type, unused-ignore]
        else:
            await super().fetchrow(
                query("session_settings"), idle_timeout, read_only, self.statement_timeout, transaction_timeout
            )

    async def prepare_once(self, statement: str) -> str | Prepared:
        """Prepare a statement, so that the server parses and plans it once for this session.

        Behind a pooler nothing is prepared: the next transaction may run in a session without the prepared statement.

        Args:
            statement: The text of the statement.

        Returns:
            The prepared statement; behind a pooler the text.
        """
        if self.pooled:
            return statement
        # The statement needs a name: without its cache the driver keeps an unnamed statement for one execution only.
        return await super().prepare(statement, name=f"iu_listen_{next(_STATEMENT_NUMBERS)}")

    async def limit_locks(self, milliseconds: int) -> None:
        """Limit the time that each later statement waits for a lock, in milliseconds."""
        self.lock_timeout = f"{milliseconds}ms"
        if not self.pooled:
            await super().fetchrow(query("session_limit"), "lock_timeout", self.lock_timeout)

    async def limit_statements(self, milliseconds: int) -> None:
        """Limit the duration of each later statement, in milliseconds."""
        self.statement_timeout = f"{milliseconds}ms"
        if not self.pooled:
            await super().fetchrow(query("session_limit"), "statement_timeout", self.statement_timeout)

    def transaction(self, **options: Any) -> _DriverTransaction:
        """As the driver's method; behind a pooler an outermost transaction begins with its settings."""
        outermost = self.pooled and not self.is_in_transaction()
        return _PooledTransaction(self, options) if outermost else super().transaction(**options)

    @property
    def _alone(self) -> bool:
        return self.pooled and not self.is_in_transaction()

    async def fetch(self, *args: Any, **options: Any) -> Any:
        """As the driver's method; behind a pooler in a transaction."""
        if not self._alone:
            return await super().fetch(*args, **options)
        async with self.transaction():
            return await super().fetch(*args, **options)

    async def fetchrow(self, *args: Any, **options: Any) -> Any:
        """As the driver's method; behind a pooler in a transaction."""
        if not self._alone:
            return await super().fetchrow(*args, **options)
        async with self.transaction():
            return await super().fetchrow(*args, **options)

    async def fetchval(self, *args: Any, **options: Any) -> Any:
        """As the driver's method; behind a pooler in a transaction."""
        if not self._alone:
            return await super().fetchval(*args, **options)
        async with self.transaction():
            return await super().fetchval(*args, **options)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As the driver's method; behind a pooler in a transaction, if there are parameters.

        Without parameters the statement is sent unchanged: it may be BEGIN, or a statement that must not run in a
        transaction.
        """
        if not (args and self._alone):
            return await super().execute(query, *args, timeout=timeout)
        async with self.transaction():
            return await super().execute(query, *args, timeout=timeout)

    async def set_for_transaction(self) -> None:
        """Make the settings of the current transaction, in a session of the server that other clients also use."""
        await super().fetchrow(query("transaction_settings"), self.statement_timeout, self.lock_timeout)


class _PooledTransaction(_DriverTransaction):
    """A transaction that makes its settings when it begins."""

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
