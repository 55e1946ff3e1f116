"""The databases of tests: copies of a template, which are made and dropped while tests run."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import anyio
import anyio.from_thread

from iu_listen.embedded import Server
from iu_listen.postgres.session import Connection, session
from iu_listen.targets.python import PythonTarget
from iu_listen.testing.outbox import prepare


class Databases:
    """Makes a database for each test, the next one while a test runs, and drops it afterwards. A context manager.

    It has a thread with one session. The server copies and removes the files of a database in another process, so on a
    machine with free processors no test waits for that.

    Args:
        server: The server.
        template: The database that is copied. Nothing may be connected to it.
    """

    def __init__(self, server: Server, template: str) -> None:
        self._server, self._template = server, template
        self._stack = ExitStack()
        self._next: Future[str] | None = None

    def __enter__(self) -> Self:
        self._portal = self._stack.enter_context(anyio.from_thread.start_blocking_portal())
        self._lock = anyio.Lock()
        self._session: Connection = self._stack.enter_context(
            self._portal.wrap_async_context_manager(session(self._server.dsn("postgres"), name="iu-listen testing"))
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def take(self) -> str:
        """The name of a new database.

        Raises:
            asyncpg.PostgresError: The server could not make it.
        """
        name = (self._next or self._portal.start_task_soon(self._create)).result()
        self._next = self._portal.start_task_soon(self._create)
        return name

    def drop(self, name: str) -> None:
        """Drop a database, and end its sessions, without waiting for it."""
        self._portal.start_task_soon(self._execute, f"drop database if exists {name} with (force)")

    async def _create(self) -> str:
        name = f"iu_{secrets.token_hex(6)}"
        await self._execute(f"create database {name} template {self._template} strategy file_copy")
        return name

    async def _execute(self, statement: str) -> None:
        async with self._lock:
            await self._session.execute(statement)


def create_template(server: Server, name: str, handlers: Iterable[PythonTarget]) -> None:
    """Create a database with the neutral base, the package, open gates, and the types and live routes of handlers."""

    async def run() -> None:
        async with session(server.dsn("postgres"), name="iu-listen testing") as connection:
            await connection.execute(f"create database {name}")
        await prepare(server.dsn(name), handlers)

    anyio.run(run)
