"""The plugin of pytest: one embedded server for a session, and one database for each test, copied from a template.

``iu_listen_app`` in the configuration of pytest names the module of the handlers, as ``--app`` does. pytest loads this
module wherever iu-listen is installed, so everything else is imported by the fixtures.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from iu_listen.embedded import Server
    from iu_listen.targets.python import PythonTarget
    from iu_listen.testing.outbox import Outbox

TEMPLATE = "iu_template"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting of the plugin."""
    parser.addini("iu_listen_app", "Module of the handlers for iu_outbox: module, or module:attribute.", default="")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Explain an event type that is not registered in the database of the test, in a section of the report."""
    report = yield
    explain = getattr(getattr(item, "funcargs", {}).get("iu_outbox"), "explain", None)
    if explain and call.excinfo and (why := explain(str(call.excinfo.value))):
        report.sections.append(("iu-listen", why))
    return report


@pytest.fixture(scope="session")
def iu_listen_handlers(request: pytest.FixtureRequest) -> list[PythonTarget]:
    """The handlers of the application, from the setting iu_listen_app. Override it for other handlers."""
    from iu_listen.targets.python import load  # noqa: PLC0415

    app = str(request.config.getini("iu_listen_app"))
    return load(app) if app else []


@pytest.fixture(scope="session")
def iu_listen_server(
    tmp_path_factory: pytest.TempPathFactory, iu_listen_handlers: list[PythonTarget]
) -> Iterator[Server]:
    """An embedded PostgreSQL server with a template database: the package with open gates, and the handlers."""
    import anyio  # noqa: PLC0415

    from iu_listen import embedded  # noqa: PLC0415
    from iu_listen.testing.outbox import prepare  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("iu-listen")
    # PostgreSQL runs as another account if the tests run as root.
    for path in (folder, *folder.parents[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    with embedded.running(folder, durable=False) as server:
        _administer(server, f"create database {TEMPLATE}")
        anyio.run(prepare, server.dsn(TEMPLATE), iu_listen_handlers)
        yield server


@pytest.fixture
def iu_outbox(iu_listen_server: Server, iu_listen_handlers: list[PythonTarget]) -> Iterator[Outbox]:
    """The outbox of one test, in a database of its own."""
    from iu_listen.testing.outbox import Outbox  # noqa: PLC0415

    name = f"iu_{secrets.token_hex(6)}"
    _administer(iu_listen_server, f"create database {name} template {TEMPLATE} strategy file_copy")
    try:
        yield Outbox(iu_listen_server.dsn(name), iu_listen_handlers)
    finally:
        _administer(iu_listen_server, f"drop database {name} with (force)")


def _administer(server: Server, statement: str) -> None:
    import anyio  # noqa: PLC0415

    from iu_listen.postgres.session import session  # noqa: PLC0415

    async def run() -> None:
        async with session(server.dsn("postgres"), name="iu-listen testing") as connection:
            await connection.execute(statement)

    anyio.run(run)
