"""The preconditions of commands: the base, the package, a registered worker, a server that accepts writes."""

from __future__ import annotations

from typing import Final

from iu_listen.install.package import Package, missing_base_objects, package_state
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.version import SCHEMA, VERSION, Compatibility
from iu_listen.postgres.queries import rows, value
from iu_listen.postgres.session import Connection

#: What to do if this version of iu-listen cannot work with the schema of the database.
_INCOMPATIBLE: Final = {
    Compatibility.TOO_NEW: "Install a newer version of iu-listen here; docs/how-to/upgrade.md.",
    Compatibility.TOO_OLD: "Run iu-listen apply with this version; docs/how-to/upgrade.md.",
}


async def require_base(connection: Connection) -> None:
    """Make sure that the database has a base: that of IU Core, or the neutral one.

    Raises:
        ConfigurationError: Tables or columns of the base are missing.
    """
    if missing := await missing_base_objects(connection):
        database = await connection.fetchval("select current_database()")
        raise ConfigurationError(
            f"database {database} has no outbox: {missing[0]} is missing",
            "Check the connection string. To create an outbox for your application: iu-listen init",
        )


async def require_package(connection: Connection) -> Package:
    """Make sure that this version of iu-listen works with the package in the database.

    Returns:
        The state of the package. Its schema version may be newer than that of this iu-listen, or one minor version
        older.

    Raises:
        ConfigurationError: The base or the package is absent, the package is half applied, it has drift, or its schema
            version is incompatible.
    """
    await require_base(connection)
    package = await package_state(connection)
    if package.usable:
        return package
    if not package.present:
        raise ConfigurationError(
            "the package is not applied to this database", "Run iu-listen apply --plan, then iu-listen apply."
        )
    if hint := _INCOMPATIBLE.get(package.compatibility):
        raise ConfigurationError(
            f"iu-listen {VERSION} (schema {SCHEMA}) cannot work with schema {package.version} of this database", hint
        )
    if drift := package.drift():
        more = f"; and {len(drift) - 3} more" if len(drift) > 3 else ""
        raise ConfigurationError(
            "; ".join(drift[:3]) + more, "See docs/how-to/repair.md, or remove the package with iu-listen rollback."
        )
    if not package.missing:
        names = ", ".join(m.name for m in package.changed)
        raise ConfigurationError(
            f"the functions in this database differ from this version of iu-listen: {names}",
            "Run iu-listen apply with the newer version of iu-listen, and use that version.",
        )
    raise ConfigurationError(
        f"half applied: {package.missing[0].name} is pending",
        "Finish with iu-listen apply, or remove the package with iu-listen rollback.",
    )


async def require_worker(connection: Connection, worker: str) -> None:
    """Make sure that a worker of this name is registered.

    Raises:
        ConfigurationError: No worker of this name is registered.
    """
    # The other workers are queried only for the error message: that query counts each backlog, which would take too
    # long at each start after an absence.
    if not await value(connection, "cursor_exists", worker):
        names = ", ".join(row["worker_name"] for row in await rows(connection, "workers"))
        raise ConfigurationError(f"worker {worker} is not registered", f"Registered workers: {names or 'none'}.")


async def require_primary(connection: Connection) -> None:
    """Make sure that this server accepts writes.

    Raises:
        ConfigurationError: The server is a standby or read-only.
    """
    for row in await rows(connection, "takes_no_writes"):
        raise ConfigurationError(row["problem"], row["hint"])
