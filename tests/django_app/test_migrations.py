"""migrate: it installs and upgrades the package, in the databases that have the app, and registers event types."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connections
from django.db.utils import ProgrammingError

from cli.command import catalogue, execute, on_one_server, portrait, rows, run, value
from cli.test_upgrade import later
from django_app.project import point_at
from django_app.settings import Router
from iu_listen.model.errors import Refused
from iu_listen.model.version import SCHEMA

pytestmark = on_one_server
#: The schema version of later().
LATER = f"{SCHEMA.major}.{SCHEMA.minor + 1}"


def migrate(*args: str, **options) -> None:
    call_command("migrate", *args, verbosity=0, **options)


def installed(dsn: str) -> bool:
    return value(dsn, "select to_regclass('public.iu_migration')") is not None


def test_migrate_installs_what_init_installs(project, neutral_catalogue):
    """In an empty database migrate creates the neutral base and the package, and every command recognizes it.

    Fails when: the migration runs another script than that of migration_sql().
    """
    migrate()

    ours = [line for line in catalogue(project) if not re.search(r"django_|shop_", line)]
    assert ours == neutral_catalogue
    done = run("verify", dsn=project)
    assert done.code == 0, done.out + done.err
    assert [row[0] for row in rows(project, "select event_type from event_type_registry")] == ["order_placed"]


@pytest.fixture
def neutral_catalogue(server) -> list[str]:
    """The objects after ``init``."""
    for database in server.create("neutral"):
        yield catalogue(database.dsn)


def test_an_installed_package_stays_as_it_is(migrated):
    """migrate does nothing in a database that init has prepared, and nothing when it runs again."""
    before = portrait(migrated)
    migrate()
    assert portrait(migrated) == before
    ledger = "select count(*) from iu_migration where evidence::text like '%iu-listen sql%'"
    assert value(migrated, ledger) == 0


def test_a_base_that_exists_is_used(project, server):
    """In a database with IU Core only the package is installed."""
    for database in server.create("base"):
        point_at(database.dsn)
        migrate("iu_listen")
        assert installed(database.dsn)
        assert value(database.dsn, "select to_regclass('information_unit')") is not None
        connections.close_all()


def test_the_removal_and_a_second_installation(migrated):
    """``migrate iu_listen zero`` removes the package, and keeps the events and the tables of the project.

    Then migrate installs it again. Fails when: the reversal does nothing, the second installation creates the base
    again, or the migrations of the project depend on those of the package.
    """
    execute(migrated, "insert into event_outbox (event_type) values ('order_placed')")
    migrate("iu_listen", "zero")
    assert not installed(migrated)
    assert value(migrated, "select count(*) from event_outbox") == 1
    assert value(migrated, "select count(*) from event_type_registry") == 1
    assert value(migrated, "select to_regclass('shop_order')") is not None
    migrate()
    assert run("verify", dsn=migrated).code == 0


def test_the_removal_of_another_schema_is_refused(migrated):
    """``migrate iu_listen zero`` changes nothing if the database has a newer schema, whose objects are not known.

    Fails when: the script of this version removes a part of them.
    """
    execute(migrated, f"update iu_migration set schema_version = '{LATER}'")
    before = portrait(migrated)
    with pytest.raises(Refused, match=f"the database has schema {LATER}"):
        migrate("iu_listen", "zero")
    connections.close_all()
    assert portrait(migrated) == before


def test_event_types_install_the_package(project):
    """A migration with AddEventTypes that runs first installs the package, and its reversal removes the types.

    Fails when: it requires that the migrations of iu-listen ran before.
    """
    migrate("shop")
    assert rows(project, "select event_type from event_type_registry") == [("order_placed",)]
    migrate("shop", "zero")
    assert rows(project, "select event_type from event_type_registry") == []
    migrate()
    assert run("verify", dsn=project).code == 0
    migrate("iu_listen", "zero")
    execute(project, "drop table event_type_registry, event_outbox cascade")
    migrate("shop", "zero")


def test_databases_without_the_app_are_left_alone(project):
    """A router excludes a database, and a database that is not PostgreSQL gets no package; other apps are migrated."""
    Router.excluded.add("other")
    try:
        migrate(database="other")
        migrate(database="lite")
    finally:
        Router.excluded.clear()
    assert not installed(project)
    assert value(project, "select to_regclass('shop_order')") is not None
    assert "iu_migration" not in connections["lite"].introspection.table_names()


def test_sqlmigrate_shows_the_script(project):
    """``sqlmigrate`` prints the SQL of the package and of the event types, and changes nothing."""
    for arguments, words in (
        (("iu_listen", "0001"), "create table public.iu_migration"),
        (("shop", "0001"), "'order_placed'"),
    ):
        out = io.StringIO()
        call_command("sqlmigrate", *arguments, stdout=out)
        assert words in out.getvalue()
    assert not installed(project)


def test_a_failed_migration_changes_nothing(project):
    """A table of the application with the name of a table of the base makes the migration fail; nothing is left.

    Fails when: the script does not run in one transaction.
    """
    execute(project, "create table dot_config (mine integer)")
    before = catalogue(project)
    with pytest.raises(ProgrammingError, match="dot_config"):
        migrate("iu_listen")
    connections.close_all()
    assert [line for line in catalogue(project) if "django_" not in line] == before


def test_an_upgrade_of_an_existing_and_of_a_new_database(migrated, tmp_path, server):
    """A later version upgrades an existing database by its own migration, and gives a new one the present schema.

    The reversal of the upgrade keeps the schema. Fails when: the migration of the new version refuses one of the two.
    """
    tree = later(tmp_path)
    (tree.root / "src/iu_listen/django/migrations/0002_later.py").write_text(
        "from django.db import migrations\nfrom iu_listen.django.operations import UpgradePackage\n"
        "class Migration(migrations.Migration):\n"
        "    dependencies = [('iu_listen', '0001_initial')]\n"
        "    operations = [UpgradePackage()]\n"
    )

    def manage(dsn: str, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from django.core.management import execute_from_command_line as e; import sys; e(sys.argv)", *args],
            env=tree.env | {
                "PYTHONPATH": f"{tree.root / 'src'}:{Path(__file__).parents[1]}", "DATABASE_DSN": dsn,
                "DJANGO_SETTINGS_MODULE": "django_app.settings",
            },
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "iu_listen.W003" in manage(migrated, "migrate", "iu_listen")
    for database in server.create(None):
        manage(database.dsn, "migrate", "iu_listen")
        for dsn in (migrated, database.dsn):
            assert run("verify", dsn=dsn, env=tree.env).code == 0
            assert value(dsn, "select max(schema_version) from iu_migration") == LATER
            assert value(dsn, "select count(*) from django_migrations where app = 'iu_listen'") == 2
    manage(migrated, "migrate", "iu_listen", "0001")
    assert value(migrated, "select max(schema_version) from iu_migration") == LATER
