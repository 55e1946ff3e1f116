"""How every command gets to its database: --dsn, else the PG* variables, else the embedded server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from iu_listen import embedded
from iu_listen.model.errors import ConfigurationError, DatabaseUnreachable
from iu_listen.model.settings import LIBPQ_VARIABLES, Settings
from iu_listen.postgres.session import Connection, session

#: Name of the database that the embedded server makes.
EMBEDDED_DATABASE = "iu"


def between(low: float, high: float) -> Callable[[Any, Any], None]:
    """A validator of an option that is a number."""

    def check(_: Any, value: float | None) -> None:
        # Written so that nan fails too.
        if value is not None and not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}")

    return check


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Where:
    """Options that every command has."""

    dsn: Annotated[
        str | None,
        Parameter(help="Connection string, also IU_LISTEN_DSN. Default: PG* variables, else the embedded server."),
    ] = None
    json: Annotated[bool, Parameter(help="Answer for machines.", negative=())] = False


@dataclass(frozen=True)
class Door:
    """An open way to a database.

    Attributes:
        settings: With the connection string in it.
        programs: Directories with PostgreSQL's client programs, besides PATH.
        server: The embedded server, where that is what we use.
    """

    settings: Settings
    programs: tuple[Path, ...]
    server: embedded.Server | None

    def session(self, name: str = "iu-listen cli") -> AbstractAsyncContextManager[Connection]:
        """A session for the length of a command."""
        return session(self.settings.dsn, name=name, deadline=self.settings.deadline)


@contextmanager
def opened(where: Where | None, **overrides: Any) -> Iterator[Door]:
    """Settings for a command, and the embedded server while it lasts, if no database is named.

    Raises:
        ConfigurationError: a setting is wrong, or there is neither a database nor an embedded server.
        DatabaseUnreachable: the embedded server does not start.
    """
    settings = Settings.load(os.environ, {"dsn": where.dsn if where else None, **overrides})
    if where and where.dsn is not None and not where.dsn.strip():
        # As with a variable of the shell that is not set: any default would be another database.
        raise ConfigurationError("--dsn is empty", "Leave it out to use IU_LISTEN_DSN or the PG* variables.")
    if settings.dsn or any(os.environ.get(name) for name in LIBPQ_VARIABLES):
        yield Door(settings, tuple(_programs()), None)
        return
    with running_server(settings) as server:
        # Its socket has another path at every start; the embedded server is one place.
        settings = replace(settings, site=settings.site or "embedded")
        yield Door(with_dsn(settings, server.dsn(EMBEDDED_DATABASE)), tuple(_programs()), server)


@contextmanager
def running_server(settings: Settings) -> Iterator[embedded.Server]:
    """The embedded server, shared with whoever else uses it, for the length of a block."""
    try:
        with embedded.running(Path(settings.data_dir), settings.embedded_major) as server:
            yield server
    except embedded.EmbeddedUnavailable as error:
        raise ConfigurationError(str(error)) from error
    except embedded.EmbeddedError as error:
        raise DatabaseUnreachable(f"the embedded server: {error}") from error


def with_dsn(settings: Settings, dsn: str) -> Settings:
    """The same settings for another database."""
    return replace(settings, dsn=dsn)


def _programs() -> Iterator[Path]:
    for major in sorted(embedded.MAJORS, reverse=True):
        try:
            yield embedded.binaries(major)
        except embedded.EmbeddedError:
            return


@asynccontextmanager
async def looking(where: Where | None, **overrides: Any) -> AsyncIterator[tuple[Door, Connection]]:
    """A door and one session through it."""
    with opened(where, **overrides) as door:
        async with door.session() as connection:
            yield door, connection
