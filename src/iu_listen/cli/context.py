"""The database of a command: from --dsn or IU_LISTEN_DSN, else from the PG* variables, else the embedded server."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from iu_listen import embedded
from iu_listen.model.errors import ConfigurationError, DatabaseUnreachable
from iu_listen.model.settings import DATABASE_VARIABLES, Settings
from iu_listen.postgres.session import Connection, session

#: Name of the database on the embedded server.
EMBEDDED_DATABASE = "iu"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ConnectionOptions:
    """Options that every command has."""

    dsn: Annotated[
        str | None,
        Parameter(help="Connection string, also IU_LISTEN_DSN. Default: PG* variables, else the embedded server."),
    ] = None
    json: Annotated[bool, Parameter(help="Print the answer as JSON.", negative=())] = False


@dataclass(frozen=True)
class CommandContext:
    """The database that a command uses.

    Attributes:
        settings: The settings, with the connection string.
        programs: Directories with PostgreSQL's client programs, besides PATH.
        server: The embedded server; None: another server is used.
    """

    settings: Settings
    programs: tuple[Path, ...]
    server: embedded.Server | None

    def session(self, name: str = "iu-listen cli", *, bounded: bool = False) -> AbstractAsyncContextManager[Connection]:
        """A session for the duration of a command.

        Args:
            name: The application_name.
            bounded: True: the block ends with DatabaseUnreachable after the setting ``deadline``.
        """
        deadline = self.settings.deadline
        return session(self.settings.dsn, name=name, deadline=deadline, longest=deadline if bounded else math.inf)


@contextmanager
def open_context(
    options: ConnectionOptions | None, *, create: bool = False, **overrides: Any
) -> Iterator[CommandContext]:
    """Read the settings of a command. If they name no database, run the embedded server during the block.

    Args:
        options: The options of the command; None: it has none.
        create: Whether the command creates the embedded database if there is none.
        overrides: Settings, by name; None counts as not given.

    Raises:
        ConfigurationError: A setting is invalid, or no database is named and there is no embedded server or database.
        DatabaseUnreachable: The embedded server does not start.
    """
    settings = Settings.load(os.environ, {"dsn": options.dsn if options else None, **overrides})
    if options and options.dsn is not None and not options.dsn.strip():
        # For example an unset variable of the shell. Any default would be a database that the user did not name.
        raise ConfigurationError("--dsn is empty", "Omit it to use IU_LISTEN_DSN or the PG* variables.")
    if settings.dsn or any(os.environ.get(name) for name in DATABASE_VARIABLES):
        yield CommandContext(settings, tuple(_programs()), None)
        return
    if not (create or embedded.exists(Path(settings.data_dir), settings.embedded_major)):
        raise ConfigurationError(
            "there is no database here: the environment names none, and"
            f" {settings.data_dir}/ has none of the embedded PostgreSQL {settings.embedded_major}",
            "Set IU_LISTEN_DSN, or create an embedded database: iu-listen dev --app MODULE, or iu-listen up",
        )
    with running_server(settings) as server:
        # The path of the server's socket changes at each start, but the site must stay the same.
        settings = replace(settings, site=settings.site or "embedded")
        yield CommandContext(with_dsn(settings, server.dsn(EMBEDDED_DATABASE)), tuple(_programs()), server)


@contextmanager
def running_server(settings: Settings) -> Iterator[embedded.Server]:
    """Run the embedded server during the block; other processes may use it at the same time."""
    try:
        with embedded.running(Path(settings.data_dir), settings.embedded_major) as server:
            yield server
    except embedded.EmbeddedUnavailable as error:
        raise ConfigurationError(str(error)) from error
    except embedded.EmbeddedError as error:
        raise DatabaseUnreachable(f"the embedded server does not work: {error}") from error


def with_dsn(settings: Settings, dsn: str) -> Settings:
    """A copy of the settings with another connection string."""
    return replace(settings, dsn=dsn)


def _programs() -> Iterator[Path]:
    for major in sorted(embedded.MAJORS, reverse=True):
        try:
            yield embedded.binaries(major)
        except embedded.EmbeddedError:
            return


@asynccontextmanager
async def connected(
    options: ConnectionOptions | None, *, create: bool = False, bounded: bool = False, **overrides: Any
) -> AsyncIterator[tuple[CommandContext, Connection]]:
    """The database of a command, and one session to it; the arguments and errors are those of open_context().

    With ``bounded`` the block ends as CommandContext.session() says.
    """
    with open_context(options, create=create, **overrides) as context:
        async with context.session(bounded=bounded) as connection:
            yield context, connection
