"""How a session to the database begins, fails and ends. Everything asyncpg raises becomes ours here.

Two rules, learnt from the drivers' issue trackers (docs/why/sessions.md):

* Every wait has a deadline of our own. A path that swallows packets raises nothing by itself.
* A session is ended by terminate(), never by close(): close() and cancellation wait for a server that may be gone.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import anyio
import asyncpg

from iu_listen.model.address import HINT, Address, parse
from iu_listen.model.errors import ConfigurationError, DatabaseUnreachable, NoAnswer, Refused, SessionLost
from iu_listen.model.settings import mask
from iu_listen.postgres.connection import PATIENCE, Connection, Prepared
from iu_listen.postgres.dial import dial

__all__ = ["PATIENCE", "Connection", "Prepared"]

#: Errors that say: this session is over, or this server cannot take writes any more.
_LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


@contextmanager
def errors_become_ours() -> Iterator[None]:
    """Turn what the driver raises into SessionLost or Refused."""
    try:
        yield
    except (*_LOST, asyncpg.PostgresError) as error:
        raise _ours(error) from error


def _ours(error: BaseException) -> SessionLost | Refused:
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, _LOST):
        return refused(error)
    return SessionLost(_one_line(error))


def refused(error: asyncpg.PostgresError) -> Refused:
    """The server's own words, its hint included."""
    hint = getattr(error, "hint", None) or ""
    if error.sqlstate == _NO_PRIVILEGE and not hint:
        # The same SQLSTATE, in whatever language the server speaks; only the place in its source tells.
        hidden = getattr(error, "server_source_function", None) == "check_enable_rls"
        hint = _POLICIES if hidden else _ROLES
    return Refused(f"{_one_line(error)} (SQLSTATE {error.sqlstate})", hint, error.sqlstate or "")


#: The SQLSTATE of a missing privilege, and the roles of deploy/postgres/roles.sql, one of which has it.
_NO_PRIVILEGE: Final = "42501"
_ROLES: Final = (
    "This login lacks the role: iu_listen_reader looks (status, doctor, attempts, …), iu_listen_operator changes (gate,"
    " route, dead-letter, …), iu_listen_janitor removes (retention run), iu_listen_consumer consumes (run, health),"
    " iu_listen_exporter exports (trace-export). For example: grant iu_listen_reader to LOGIN."
)
_POLICIES: Final = (
    "Row level security hides rows of this table from the role. Give the role BYPASSRLS, or switch it off on the table;"
    " iu-listen doctor names the tables."
)


def _one_line(error: BaseException) -> str:
    text = str(error).partition("\n")[0] or type(error).__name__
    return "no answer in time" if isinstance(error, TimeoutError) and not str(error) else mask(text)


async def connect(
    dsn: str | None,
    *,
    name: str,
    deadline: float,
    idle_timeout: float = 0,
    read_only: bool = False,
    statement_timeout: float | None = None,
    transaction_timeout: float | None = None,
) -> Connection:
    """Open a session.

    Its ``search_path`` is empty, and rows that a policy hides are an error. Behind a pooler, where the session may be
    another one in every transaction, the same holds for each transaction. ``pooled`` tells.

    Args:
        dsn: Connection string; None or empty means the PG* variables.
        name: application_name, for whoever looks into pg_stat_activity.
        deadline: Longest wait, in seconds.
        idle_timeout: After how many idle seconds the server ends the session; 0 means never.
        read_only: The server refuses whatever it might write.
        statement_timeout: After how many seconds the server ends a statement; None: as it is set there.
        transaction_timeout: After how many seconds of a transaction the server ends the session, from PostgreSQL 17 on;
            None: as it is set there.

    Raises:
        DatabaseUnreachable: there is no session to be had.
        ConfigurationError: the connection string is no connection string.
    """
    address = parse(dsn, os.environ)
    try:
        with anyio.fail_after(deadline):
            connection: Connection = await dial(
                address,
                deadline=deadline,
                # A pooler refuses start-up parameters that it does not know; this one they all do.
                server_settings={"application_name": name},
                # Named statements behind a pooler would stay with a server session that somebody else gets.
                statement_cache_size=0,
                connection_class=Connection,
            )
            try:
                connection.statement_timeout = _milliseconds(statement_timeout)
                await connection.settle_in(
                    idle_timeout=_milliseconds(idle_timeout) or "0",
                    read_only=read_only,
                    transaction_timeout=_milliseconds(transaction_timeout),
                )
            except BaseException:
                connection.terminate()
                raise
            return connection
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise _unreachable(error, address) from error


def _unreachable(error: BaseException, address: Address) -> ConfigurationError | DatabaseUnreachable:
    """What the driver or the server says against a session, without our secrets."""
    why = address.scrub(_one_line(error))
    match error:
        # Before ValueError: a certificate that does not verify is one of those too.
        case ssl.SSLError():
            return DatabaseUnreachable(f"cannot connect: {why}", _REACH_HINT)
        case asyncpg.ClientConfigurationError() | ValueError():
            # Its text may quote what it could not read.
            return ConfigurationError("the driver does not take the connection string", HINT)
        case asyncpg.InvalidCatalogNameError():
            return DatabaseUnreachable(why, "Create it, or name another one in the connection string.")
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return DatabaseUnreachable(why, "Check user and password; pg_hba.conf decides on the server.")
        case asyncpg.PostgresError() if name := next(
            (n for n in address.settings if re.search(rf"\b{re.escape(n)}\b", why)), None
        ):
            hint = (
                f"Take {name} out of the connection string: it is no parameter of libpq and no setting of this server."
            )
            return ConfigurationError(f"the connection parameter {name} is not taken: {why}", hint)
        case asyncpg.TooManyConnectionsError():
            return DatabaseUnreachable(f"cannot connect: {why}", _SLOTS_HINT)
        # PgBouncer's own words; the rest of what a server says on its way down is a matter of reaching it.
        case asyncpg.PostgresError() if "statement pooling mode" in why:
            return DatabaseUnreachable(f"cannot connect: {why}", _POOLER_HINT)
    return DatabaseUnreachable(f"cannot connect: {why}", _REACH_HINT)


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{round(seconds * 1000)}ms"


async def connect_again(dsn: str | None, **how: Any) -> Connection:
    """As connect(), for the running consumer, which tries again whatever the reason.

    Raises:
        NoAnswer: nothing came back in time.
        SessionLost: there is no session to be had.
    """
    try:
        return await connect(dsn, **how)
    except (DatabaseUnreachable, ConfigurationError) as error:
        kind = NoAnswer if isinstance(error.__cause__, TimeoutError) else SessionLost
        raise kind(error.message, error.hint) from error


_SLOTS_HINT: Final = (
    "Raise max_connections, or the connection limit of the role, the database or the pooler: a consumer has three"
    " sessions, and two more where it delivers."
)
_POOLER_HINT: Final = "A batch is a transaction: set pool_mode of the pooler to transaction or to session."
_REACH_HINT: Final = "Is the server running, and are host and port right? Give them with --dsn or IU_LISTEN_DSN."


@asynccontextmanager
async def session(dsn: str | None, *, name: str, deadline: float = 10, **options: Any) -> AsyncIterator[Connection]:
    """A session for the length of a command. Same arguments and errors as connect()."""
    connection = await connect(dsn, name=name, deadline=deadline, **options)
    try:
        with _commands_errors():
            yield connection
    finally:
        connection.terminate()


@contextmanager
def _commands_errors() -> Iterator[None]:
    """As errors_become_ours(), for a command that does not try again."""
    try:
        with errors_become_ours():
            yield
    except SessionLost as lost:
        raise DatabaseUnreachable(
            f"the session was lost: {lost.message}", "Is the server still there? Try again."
        ) from lost


async def ask(connection: Connection, deadline: float, statement: str | Prepared, *args: Any) -> Any:
    """One value from the database, within ``deadline`` seconds. Arguments and errors as ask_rows()."""
    rows = await ask_rows(connection, deadline, statement, *args)
    return rows[0][0] if rows else None


async def ask_rows(connection: Connection, deadline: float, statement: str | Prepared, *args: Any) -> list[Any]:
    """Rows from the database, within ``deadline`` seconds.

    Args:
        connection: The session.
        deadline: Longest wait, in seconds.
        statement: Its text, or one that was prepared in this session.
        args: Its parameters.

    Raises:
        NoAnswer: nothing came back in time; the session is ended then.
        SessionLost: there is no session any more.
        Refused: the server answered with an error.
    """
    # A timer that ends the session, which ends the wait: a cancel scope would cost as much as the rest of this.
    # What has arrived is heard of first: who was frozen finds both at once, an answer, and a deadline that is over.
    loop = asyncio.get_running_loop()
    timers: list[asyncio.Handle] = []
    timers.append(loop.call_later(deadline, lambda: timers.append(loop.call_soon(connection.terminate))))
    try:
        if not isinstance(statement, str):
            return await statement.fetch(*args)
        rows: list[Any] = await connection.fetch(statement, *args)
        return rows
    except Exception as error:
        ours = _ours(error)
        if isinstance(ours, Refused):
            raise ours from error
        # Not by a clock: a loop may count whole milliseconds, and strike within one that is not over.
        if len(timers) > 1:
            connection.terminate()
            raise NoAnswer(f"no answer within {deadline:g} s") from error
        # Where the session is ended between the two steps of a statement, the driver stumbles over what is not there.
        if isinstance(error, _LOST) or connection.is_closed():
            raise ours from error
        raise
    finally:
        for timer in timers:
            timer.cancel()
