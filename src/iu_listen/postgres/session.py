"""Opens and ends database sessions, runs statements with a deadline, and translates the errors of asyncpg.

Two rules follow from issues of PostgreSQL drivers (docs/why/sessions.md):

* Every wait has a deadline in the client. A network path that drops packets raises no error by itself.
* A session is ended by terminate(), never by close(): close() and cancellation wait for a server that may be gone.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import anyio
import asyncpg
from asyncpg.prepared_stmt import PreparedStatement as Prepared

from iu_listen.model.address import CONNECTION_STRING_HINT, ConnectionAddress, parse
from iu_listen.model.errors import ConfigurationError, DatabaseUnreachable, NoAnswer, Refused, SessionLost
from iu_listen.model.settings import mask
from iu_listen.postgres.connection import Connection
from iu_listen.postgres.dial import dial

__all__ = ["Connection", "Prepared"]

#: Errors after which the session cannot be used any more, or the server does not accept writes any more.
_SESSION_LOST_ERRORS: Final = (
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
def translate_driver_errors() -> Iterator[None]:
    """Translate an error of the driver into SessionLost or Refused."""
    try:
        yield
    except (*_SESSION_LOST_ERRORS, asyncpg.PostgresError) as error:
        raise _translated(error) from error


def _translated(error: BaseException) -> SessionLost | Refused:
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, _SESSION_LOST_ERRORS):
        return refused_by_server(error)
    return SessionLost(_one_line(error))


def refused_by_server(error: asyncpg.PostgresError) -> Refused:
    """The error with the message, the hint and the SQLSTATE of the server."""
    hint = getattr(error, "hint", None) or ""
    if error.sqlstate == NO_PRIVILEGE and not hint:
        # Row level security and a missing privilege have the same SQLSTATE, and the message may be in any language.
        # Only the name of the function in the server's source distinguishes them.
        hidden = getattr(error, "server_source_function", None) == "check_enable_rls"
        hint = _ROW_SECURITY_HINT if hidden else _ROLES_HINT
    return Refused(f"{_one_line(error)} (SQLSTATE {error.sqlstate})", hint, error.sqlstate or "")


#: The SQLSTATE of a missing privilege.
NO_PRIVILEGE: Final = "42501"
#: The hint for it names the roles of deploy/postgres/roles.sql; one of them has the privilege.
_ROLES_HINT: Final = (
    "This login lacks a role: iu_listen_reader for status, doctor, attempts and other queries; iu_listen_operator for"
    " gate, route, dead-letter and other changes; iu_listen_janitor for retention run; iu_listen_consumer for run and"
    " health; iu_listen_exporter for trace-export. For example: grant iu_listen_reader to LOGIN."
)
_ROW_SECURITY_HINT: Final = (
    "Row level security hides rows of this table from the role. Give the role BYPASSRLS, or switch row level security"
    " off on the table; iu-listen doctor lists the tables."
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

    The session has an empty ``search_path``, and a query on a table whose rows a policy hides is an error. Behind a
    transaction pooler each transaction may run in another session of the server, so both are set in each transaction.
    The attribute ``pooled`` of the result says whether there is a pooler.

    Args:
        dsn: Connection string; None or empty means the PG* variables.
        name: application_name, as pg_stat_activity shows it.
        deadline: Longest wait for the session, in seconds.
        idle_timeout: Idle time in seconds after which the server ends the session; 0 means never.
        read_only: Whether the server refuses all writes of the session.
        statement_timeout: Time in seconds after which the server cancels a statement; None keeps the server's setting.
        transaction_timeout: Duration of a transaction in seconds after which the server ends the session, from
            PostgreSQL 17 on; None keeps the server's setting.

    Raises:
        DatabaseUnreachable: No session could be opened.
        ConfigurationError: The connection string is not valid, or the server does not know one of its parameters.
    """
    address = parse(dsn, os.environ)
    try:
        with anyio.fail_after(deadline):
            connection: Connection = await dial(
                address,
                deadline=deadline,
                # A pooler refuses start-up parameters that it does not know; all poolers know application_name.
                server_settings={"application_name": name},
                # Behind a pooler a named statement would stay in a server session that then serves another client.
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


def _unreachable(error: BaseException, address: ConnectionAddress) -> ConfigurationError | DatabaseUnreachable:
    """The error for a session that could not be opened: the reason of the driver or the server, without secrets."""
    why = address.scrub(_one_line(error))
    match error:
        # This case stands before ValueError: SSLCertVerificationError is a subclass of ValueError.
        case ssl.SSLError():
            return DatabaseUnreachable(f"cannot connect: {why}", _REACH_HINT)
        case asyncpg.ClientConfigurationError() | ValueError():
            # The text of the error is left out: it may quote a part of the connection string, with a secret.
            return ConfigurationError("the driver does not accept the connection string", CONNECTION_STRING_HINT)
        case asyncpg.InvalidCatalogNameError():
            return DatabaseUnreachable(why, "Create this database, or name another one in the connection string.")
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return DatabaseUnreachable(
                why, "Check the user name and the password. On the server, pg_hba.conf decides who may connect."
            )
        case asyncpg.PostgresError() if name := next(
            (n for n in address.settings if re.search(rf"\b{re.escape(n)}\b", why)), None
        ):
            hint = f"Remove {name} from the connection string: libpq has no such parameter, the server no such setting."
            return ConfigurationError(f"the server does not accept the connection parameter {name}: {why}", hint)
        case asyncpg.TooManyConnectionsError():
            return DatabaseUnreachable(f"cannot connect: {why}", _SLOTS_HINT)
        # The message of PgBouncer. Any other error of a server counts as a server that cannot be reached.
        case asyncpg.PostgresError() if "statement pooling mode" in why:
            return DatabaseUnreachable(f"cannot connect: {why}", _POOLER_HINT)
    return DatabaseUnreachable(f"cannot connect: {why}", _REACH_HINT)


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{round(seconds * 1000)}ms"


async def connect_again(dsn: str | None, **how: Any) -> Connection:
    """Open a session as connect() does, for a running consumer, which repeats the attempt after every error.

    Raises:
        NoAnswer: The server did not answer within the deadline.
        SessionLost: No session could be opened for another reason.
    """
    try:
        return await connect(dsn, **how)
    except (DatabaseUnreachable, ConfigurationError) as error:
        kind = NoAnswer if isinstance(error.__cause__, TimeoutError) else SessionLost
        raise kind(error.message, error.hint) from error


_SLOTS_HINT: Final = (
    "Increase max_connections, or the connection limit of the role, the database or the pooler. A consumer has three"
    " sessions, and two more while it delivers."
)
_POOLER_HINT: Final = "A batch is a transaction. Set pool_mode of the pooler to transaction or to session."
_REACH_HINT: Final = "Check that the server is running, and that host and port in --dsn or IU_LISTEN_DSN are right."


@asynccontextmanager
async def session(
    dsn: str | None, *, name: str, deadline: float = 10, longest: float = math.inf, **options: Any
) -> AsyncIterator[Connection]:
    """A session for the duration of a command, with the arguments and errors of connect().

    Args:
        dsn: As in connect().
        name: As in connect().
        deadline: As in connect().
        longest: Longest duration of the block, in seconds, for an unattended command. A path that accepts all
            data and forwards none looks like a statement that takes long.
        options: Further arguments of connect().

    Raises:
        DatabaseUnreachable: The session was lost during the command, or the block took longer than ``longest``.
        Refused: The server answered a statement of the command with an error.
    """
    connection = await connect(dsn, name=name, deadline=deadline, **options)
    try:
        with _translate_for_command(), anyio.move_on_after(longest) as scope:
            yield connection
        if scope.cancelled_caught:
            raise DatabaseUnreachable(
                f"the server did not answer within {longest:g} s", "Check the path to the server, and its load."
            )
    finally:
        connection.terminate()


@contextmanager
def _translate_for_command() -> Iterator[None]:
    """As translate_driver_errors(), for a command, which does not repeat a lost session: SessionLost ends it."""
    try:
        with translate_driver_errors():
            yield
    except SessionLost as lost:
        raise DatabaseUnreachable(
            f"the session was lost: {lost.message}", "Check that the server is running, and repeat the command."
        ) from lost


async def ask(connection: Connection, deadline: float, statement: str | Prepared, *args: Any) -> Any:
    """The first value of the first row; None without rows. Arguments and errors are those of ask_rows()."""
    rows = await ask_rows(connection, deadline, statement, *args)
    return rows[0][0] if rows else None


async def ask_rows(connection: Connection, deadline: float, statement: str | Prepared, *args: Any) -> list[Any]:
    """Execute a statement and return its rows.

    Args:
        connection: The session.
        deadline: Longest wait for the rows, in seconds.
        statement: The text of the statement, or a statement that was prepared in this session.
        args: The parameters of the statement.

    Raises:
        NoAnswer: The server did not answer within the deadline. The session is ended.
        SessionLost: The session was lost.
        Refused: The server answered with an error.
    """
    # At the deadline a timer ends the session, which ends the wait. A cancel scope would cost as much as the rest of
    # this function. The timer ends it one round of the event loop later: if the process was frozen, the loop finds an
    # answer and an expired deadline at the same time, and has to process the answer first.
    loop = asyncio.get_running_loop()
    timers: list[asyncio.Handle] = []
    timers.append(loop.call_later(deadline, lambda: timers.append(loop.call_soon(connection.terminate))))
    try:
        if not isinstance(statement, str):
            return await statement.fetch(*args)
        rows: list[Any] = await connection.fetch(statement, *args)
        return rows
    except Exception as error:
        translated = _translated(error)
        if isinstance(translated, Refused):
            raise translated from error
        # The timer tells whether the deadline is over, not a clock: an event loop may count whole milliseconds and run
        # a timer shortly before its time.
        if len(timers) > 1:
            connection.terminate()
            raise NoAnswer(f"no answer within {deadline:g} s") from error
        # If the session ends between the two steps of a statement, the driver fails with an arbitrary exception.
        if isinstance(error, _SESSION_LOST_ERRORS) or connection.is_closed():
            raise translated from error
        raise
    finally:
        for timer in timers:
            timer.cancel()
