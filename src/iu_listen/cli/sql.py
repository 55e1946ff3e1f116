"""The command sql: print the SQL of the package for other deployment tools."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import App, Parameter

from iu_listen.install.script import migration_sql


def register(app: App) -> None:
    """Add this command."""
    app.command(sql)


def sql(
    *,
    since: Annotated[
        str | None,
        Parameter(help="Schema version of the database, as in 1.0: print the upgrade. Default: the whole package."),
    ] = None,
    base: Annotated[
        Literal["neutral", "iu_core"] | None,
        Parameter(help="Create this base first: neutral for an application, iu_core for tests of IU Core."),
    ] = None,
    down: Annotated[
        bool, Parameter(help="Print the removal; with --since, of what was added since then.", negative=())
    ] = False,
) -> int:
    """Print the SQL that apply would run, for Alembic, Django migrations, Flyway or a database administrator.

    The command uses no database. Run its output in one transaction, for example with psql -1 -f. It also fills the
    ledger, so apply and all other commands recognize the package. It is inert afterwards. On a large outbox prefer
    apply, which numbers old events in batches and builds indexes without blocking producers.
    """
    sys.stdout.write(migration_sql(since, base=base, down=down))
    return 0
