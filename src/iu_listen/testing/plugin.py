"""The plugin of pytest: one embedded server for a session, and one database for each test, copied from a template.

``iu_listen_app`` in the configuration of pytest names the module of the handlers, as ``--app`` does. pytest loads this
module wherever iu-listen is installed, so everything else is imported by the fixtures.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from iu_listen.embedded import Server
    from iu_listen.targets.python import PythonTarget
    from iu_listen.testing.databases import Databases
    from iu_listen.testing.outbox import Outbox

TEMPLATE = "iu_template"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting of the plugin."""
    parser.addini("iu_listen_app", "Module of the handlers for iu_outbox: module, or module:attribute.", default="")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Explain an event type that is not registered in the database of the test, in a section of the report."""
    report = yield
    outbox = getattr(item, "funcargs", {}).get("iu_outbox")
    if outbox is not None and call.excinfo:
        from iu_listen.testing.outbox import Outbox, explain  # noqa: PLC0415

        if isinstance(outbox, Outbox) and (why := explain(outbox, str(call.excinfo.value))):
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
    from iu_listen import embedded  # noqa: PLC0415
    from iu_listen.testing.databases import create_template  # noqa: PLC0415

    folder, base = tmp_path_factory.mktemp("iu-listen"), tmp_path_factory.getbasetemp()
    # If the tests run as root, PostgreSQL runs as another account, and must reach its directory below those of pytest.
    if os.geteuid() == 0:
        for path in (folder, base, *(p for p in (base.parent,) if p.name.startswith("pytest-of-"))):
            path.chmod(path.stat().st_mode | 0o055)
    with embedded.running(folder, durable=False) as server:
        create_template(server, TEMPLATE, iu_listen_handlers)
        yield server


@pytest.fixture(scope="session")
def _iu_listen_databases(iu_listen_server: Server) -> Iterator[Databases]:
    from iu_listen.testing.databases import Databases  # noqa: PLC0415

    with Databases(iu_listen_server, TEMPLATE) as databases:
        yield databases


@pytest.fixture
def iu_outbox(
    iu_listen_server: Server, iu_listen_handlers: list[PythonTarget], _iu_listen_databases: Databases
) -> Iterator[Outbox]:
    """The outbox of one test, in a database of its own."""
    from iu_listen.testing.outbox import Outbox  # noqa: PLC0415

    name = _iu_listen_databases.take()
    try:
        yield Outbox(iu_listen_server.dsn(name), iu_listen_handlers)
    finally:
        _iu_listen_databases.drop(name)
