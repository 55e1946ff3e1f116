"""The command sql: its script makes what apply makes, in one transaction of another tool, and apply recognizes it."""

from __future__ import annotations

import asyncio
import re

import asyncpg
import pytest
import sqlalchemy

import iu_listen
from cli.command import Tree, catalogue, execute, on_one_server, portrait, refused, rows, run, value
from cli.test_upgrade import LATER, NEW_FILE, apply, later
from iu_listen.model.version import SCHEMA
from support import connected


def in_one_transaction(dsn: str, script: str) -> None:
    """Run a script as a migration tool does."""

    async def go() -> None:
        async with connected(dsn) as connection, connection.transaction():
            await connection.execute(script)

    asyncio.run(go())


def script(*args: str, tree: Tree | None = None) -> str:
    done = run("sql", *args, env=tree.env if tree else {})
    assert done.code == 0, done.err
    return done.out


@on_one_server
def test_the_script_makes_what_apply_makes(substrate, applied):
    """After the script, the catalogue and the ledger are those after apply, and apply and verify recognize the package.

    Fails when: a file is missing from the script, its order is wrong, or the ledger is not filled.
    """
    in_one_transaction(substrate.dsn, script())
    assert catalogue(substrate.dsn) == catalogue(applied.dsn)
    ledger = "select name, checksum, schema_version from iu_migration order by name"
    assert rows(substrate.dsn, ledger) == rows(applied.dsn, ledger)
    assert run("verify", dsn=substrate.dsn).code == 0
    done = apply(substrate.dsn)
    assert (done.code, done.json["applied"]) == (0, [])


@on_one_server
def test_old_events_are_numbered(substrate):
    """The script numbers more old events than one execution of its repeated statement does."""
    execute(
        substrate.dsn,
        """select fn_iu_emit_event('version_applied', 'a', gen_random_uuid(), 'test', '{}')
             from generate_series(1, 10001)""",
    )
    in_one_transaction(substrate.dsn, script())
    assert value(substrate.dsn, "select count(distinct event_seq) from event_outbox where event_seq < 0") == 10001


@on_one_server
def test_the_base_and_the_removal(empty):
    """--base makes an empty database usable, and --down removes everything but the base.

    Fails when: the removal leaves an object behind.
    """
    in_one_transaction(empty.dsn, script("--base", "iu_core"))
    assert run("verify", dsn=empty.dsn).code == 0
    in_one_transaction(empty.dsn, script("--down"))
    assert value(empty.dsn, "select to_regclass('iu_migration')") is None
    in_one_transaction(empty.dsn, script())
    assert run("verify", dsn=empty.dsn).code == 0


@on_one_server
def test_an_upgrade_and_back(live, tmp_path):
    """--since makes the same upgrade as apply, and --down with --since removes what was added.

    Fails when: a file of the version before is in the script, or the ledger keeps the new version.
    """
    tree = later(tmp_path)
    in_one_transaction(live.dsn, script("--since", str(SCHEMA), tree=tree))
    assert run("verify", "--live", dsn=live.dsn, env=tree.env).code == 0
    assert value(live.dsn, "select to_regclass('iu_later')") is not None
    assert apply(live.dsn, tree).json["applied"] == []
    in_one_transaction(live.dsn, script("--down", "--since", str(SCHEMA), tree=tree))
    assert value(live.dsn, "select to_regclass('iu_later')") is None
    assert value(live.dsn, f"select count(*) from iu_migration where name = '{NEW_FILE}'") == 0


@on_one_server
def test_a_database_of_another_version_is_refused(live, tmp_path):
    """The script of an upgrade refuses a database that does not have the named version, and changes nothing."""
    tree = later(tmp_path)
    text = script("--since", str(SCHEMA), tree=tree)
    in_one_transaction(live.dsn, text)
    before = portrait(live.dsn)
    refusal = re.escape(f"this script is for schema {SCHEMA}, and this database has schema {LATER}")
    with pytest.raises(asyncpg.RaiseError, match=refusal):
        in_one_transaction(live.dsn, text)
    assert portrait(live.dsn) == before


def test_bad_versions():
    """A version that cannot be upgraded is an error that names the remedy; so is a base beside it."""
    refused(2, f"schema {SCHEMA} cannot be upgraded to schema {SCHEMA}", "iu-listen doctor")(
        "sql", "--since", str(SCHEMA)
    )
    refused(2, "schema 2.0 cannot be upgraded")("sql", "--since", "2.0")
    refused(2, "has the form major.minor")("sql", "--since", "one")
    refused(2, "Leave out --base")("sql", "--base", "neutral", "--down")


def test_the_function():
    """Programs get the same text from iu_listen.migration_sql()."""
    assert iu_listen.migration_sql(base="neutral") == script("--base", "neutral")


@on_one_server
def test_a_migration_of_alembic(substrate):
    """The lines of docs/how-to/upgrade.md apply the package, and take it back, on a connection of SQLAlchemy.

    Fails when: the script has text that SQLAlchemy or the driver takes for parameters.
    """
    engine = sqlalchemy.create_engine(substrate.dsn.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(iu_listen.migration_sql())
    assert run("verify", dsn=substrate.dsn).code == 0
    with engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(iu_listen.migration_sql(down=True))
    assert value(substrate.dsn, "select to_regclass('iu_migration')") is None
    engine.dispose()
