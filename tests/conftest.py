"""One PostgreSQL for each session and major version, template databases, and a database for every test.

A test that takes ``substrate``, ``applied`` or ``live`` runs on embedded PostgreSQL 16 and 18, and on the server
that IU_LISTEN_TEST_DSN names.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import pytest
import uvloop

from clusters import cluster
from iu_listen import embedded
from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.postgres.session import session
from support import apply_partitioned_base, open_gate


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of asyncio; also that of uvloop for tests that depend on how a loop measures time and orders tasks."""
    both = item.get_closest_marker("both_loops") is not None
    return {"asyncio": asyncio.new_event_loop} | ({"uvloop": uvloop.new_event_loop} if both else {})


SERVERS = ("pg16", "pg18", *(["dsn"] if os.environ.get("IU_LISTEN_TEST_DSN") else []))


@dataclass
class Database:
    """The database of a test. ``dsn`` is its connection string; ``server`` is None for
    a server that is not embedded."""

    dsn: str
    server: embedded.Server | None


@dataclass
class TestServer:
    """A server with template databases, which are created at their first use."""

    __test__ = False
    admin: str
    embedded: embedded.Server | None
    templates: dict[str, str] = field(default_factory=dict)

    def dsn(self, database: str) -> str:
        parts = urlsplit(self.admin)
        return urlunsplit(parts._replace(path=f"/{database}"))

    def execute(self, *statements: str) -> None:
        async def run() -> None:
            async with session(self.admin, name="tests") as connection:
                for statement in statements:
                    await connection.execute(statement)

        asyncio.run(run())

    def template(self, kind: str) -> str:
        """Name of the template database with the substrate (``base``) or the whole package (``applied``).

        ``partitioned`` is the whole package on an event_outbox that is partitioned by month, and ``neutral`` the whole
        package on the neutral base.
        """
        if kind not in self.templates:
            name = f"iu_template_{kind}_{secrets.token_hex(4)}"
            self.execute(f"create database {name}")

            async def fill() -> None:
                async with session(self.dsn(name), name="tests") as connection:
                    if kind == "partitioned":
                        await apply_partitioned_base(connection)
                    else:
                        await migrate.apply_base(connection, "neutral" if kind == "neutral" else "iu_core")
                    if kind != "base":
                        state = await package_state(connection)
                        await migrate.apply_files(connection, state.pending, {}, lambda _: None)

            asyncio.run(fill())
            self.templates[kind] = name
        return self.templates[kind]

    def create(self, kind: str | None) -> Iterator[Database]:
        """A database made from a template (None: an empty one), dropped afterwards."""
        name = f"iu_test_{secrets.token_hex(6)}"
        source = f" template {self.template(kind)} strategy file_copy" if kind else ""
        self.execute(f"create database {name}{source}")
        try:
            yield Database(self.dsn(name), self.embedded)
        finally:
            self.execute(f"drop database if exists {name} with (force)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put slow tests first, so that no worker is left with one at the end, and deselect some unless `make wide` runs.

    Deselected are slow tests on the older server, if they also run on the newer one, and tests marked as wide.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if os.environ.get("IU_LISTEN_TEST_WIDE"):
        return
    names = {item.nodeid for item in items}
    spared = {
        i
        for i in items
        if i.get_closest_marker("wide")
        or (i.get_closest_marker("slow") and i.nodeid.replace("pg16", "pg18") in names - {i.nodeid})
    }
    config.hook.pytest_deselected(items=list(spared))
    items[:] = [i for i in items if i not in spared]


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[TestServer]:
    """A running server; embedded ones do not flush to disk, and allow prepared transactions."""
    if request.param == "dsn":
        ours = TestServer(os.environ["IU_LISTEN_TEST_DSN"], None)
        yield ours
        ours.execute(*(f"drop database if exists {name} with (force)" for name in ours.templates.values()))
        return
    # The data lies in a directory that the account of the server can access; pytest's tmp_path is closed to it.
    major = int(request.param[2:])
    with cluster(major, max_prepared_transactions="10", track_commit_timestamp="on") as running:
        yield TestServer(running.dsn("postgres"), running)


@pytest.fixture
def empty(server: TestServer) -> Iterator[Database]:
    """A database without any objects."""
    yield from server.create(None)


@pytest.fixture
def substrate(server: TestServer) -> Iterator[Database]:
    """A database with IU Core and without the package."""
    yield from server.create("base")


@pytest.fixture
def applied(server: TestServer) -> Iterator[Database]:
    """A database with the package applied, inert."""
    yield from server.create("applied")


@pytest.fixture
def partitioned(server: TestServer) -> Iterator[Database]:
    """A database with an event_outbox that is partitioned by month, the package applied and the worker gate open."""
    for database in server.create("partitioned"):
        asyncio.run(open_gate(database.dsn))
        yield database


@pytest.fixture
def live(applied: Database) -> Database:
    """A database with the package applied and the worker gate open."""
    asyncio.run(open_gate(applied.dsn))
    return applied
