"""The preconditions of commands: the base, the package, a registered worker, a server that accepts writes."""

from __future__ import annotations

from iu_listen.install.migrate import missing_base_objects, package_state
from iu_listen.model.errors import ConfigurationError
from iu_listen.postgres.queries import rows, value
from iu_listen.postgres.session import Connection


async def require_base(connection: Connection) -> None:
    """Make sure that this is a database of IU Core.

    Raises:
        ConfigurationError: Tables or columns of IU Core are missing.
    """
    if missing := await missing_base_objects(connection):
        database = await connection.fetchval("select current_database()")
        raise ConfigurationError(
            f"database {database} is not one of IU Core: {missing[0]} is missing",
            "Check the connection string. For an empty database: iu-listen apply --base",
        )


async def require_package(connection: Connection) -> None:
    """Make sure that the package is applied completely.

    Raises:
        ConfigurationError: The base or the package is absent, the package is half applied, it has drift, or its
            functions are those of another version.
    """
    await require_base(connection)
    package = await package_state(connection)
    if package.complete:
        return
    if not package.present:
        raise ConfigurationError(
            "the package is not applied to this database", "Run iu-listen apply --plan, then iu-listen apply."
        )
    if drift := package.drift():
        more = f"; and {len(drift) - 3} more" if len(drift) > 3 else ""
        raise ConfigurationError(
            "; ".join(drift[:3]) + more, "See docs/how-to/repair.md, or remove the package with iu-listen rollback."
        )
    if set(package.pending) <= set(package.changed):
        names = ", ".join(m.name for m in package.changed)
        raise ConfigurationError(
            f"the functions in this database differ from this version of iu-listen: {names}",
            "Run iu-listen apply with the newer version of iu-listen, and use that version.",
        )
    raise ConfigurationError(
        f"half applied: {package.pending[0].name} is pending",
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
