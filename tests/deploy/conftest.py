"""The fixture of the tests of roles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncpg
import pytest

from conftest import Database
from deploy.role_helpers import GROUPS, HARDEN, ROLES, Logins, execute, fetchval


@pytest.fixture
def roles(applied: Database) -> Iterator[Logins]:
    """A strict database with the package and the roles; yields a factory of login roles."""
    before = fetchval(applied.dsn, "select array_agg(rolname::text) from pg_roles") or []
    execute(applied.dsn, HARDEN, ROLES)
    logins = Logins(applied)
    yield logins
    for name in [*logins.names, *(group for group in GROUPS if group not in before)]:
        execute(applied.dsn, f"drop owned by {name}")
        # Another run on the same server may depend on the group role by now.
        with contextlib.suppress(asyncpg.DependentObjectsStillExistError):
            execute(applied.dsn, f"drop role {name}")
