"""The app without a database: names, versions of its migrations, handlers, and connection strings."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.checks import run_checks
from django.test import override_settings

import iu_listen.django
from django_app.project import set_up
from iu_listen.django.database import dsn
from iu_listen.django.operations import AddEventTypes
from iu_listen.model.address import parse
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.version import SCHEMA, SchemaVersion
from iu_listen.targets.python import load

#: The schema version of the first release that has the app.
FIRST = SchemaVersion(1, 1)


def test_event_types_are_names():
    """A text that is not usable as a name is refused when the migration is loaded."""
    with pytest.raises(ConfigurationError, match="'order placed' is not a name"):
        AddEventTypes("order_placed", "order placed")


def test_each_schema_version_has_a_migration():
    """Each schema version after that of the first release with the app has a migration, which upgrades databases.

    Fails when: a new schema version has no migration.
    """
    folder = Path(iu_listen.django.__file__).parent / "migrations"
    later = range(FIRST.minor + 1, SCHEMA.minor + 1)
    expected = ["0001_initial", *(f"{n:04}_schema_{SCHEMA.major}_{minor}" for n, minor in enumerate(later, 2))]
    assert sorted(file.stem for file in folder.glob("0*.py")) == expected


def test_the_handlers_of_a_project():
    """``--app iu_listen.django:handlers`` has the handlers of all apps, and an empty list is no error.

    Fails when: the modules ``handlers`` of the apps are not imported, or a project without handlers is refused.
    """
    set_up()
    assert [handler.name for handler in load("iu_listen.django:handlers")] == ["order_placed.send_mail"]
    with override_settings(INSTALLED_APPS=["iu_listen.django", "django.contrib.staticfiles"]):
        assert load("iu_listen.django:handlers") == []


def test_a_module_of_handlers_that_cannot_be_imported():
    """The error names the module, and what to do."""
    set_up()
    with (
        override_settings(INSTALLED_APPS=["iu_listen.django", "django_app.broken"]),
        pytest.raises(ConfigurationError, match=r"django_app.broken.handlers cannot be imported: ValueError") as error,
    ):
        load("iu_listen.django:handlers")
    assert "python -m django_app.broken.handlers" in error.value.hint


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"NAME": "shop", "USER": "ann", "PASSWORD": "a@/?#&=%b ü", "HOST": "db.example", "PORT": 5433},
         ({"dbname": "shop", "user": "ann", "password": "a@/?#&=%b ü"}, (("db.example", 5433),), {})),
        ({"NAME": "shop", "USER": "", "PASSWORD": "", "HOST": "", "PORT": "", "OPTIONS": {}}, ({"dbname": "shop"}, (), {})),
        ({"NAME": "shop", "HOST": "/run/pg", "OPTIONS": {"sslmode": "require", "pool": True, "assume_role": "owner"}},
         ({"dbname": "shop", "sslmode": "require"}, (("/run/pg", 5432),), {"role": "owner"})),
    ],
    ids=["all", "only the name", "options"],
)  # fmt: skip
def test_the_connection_string_of_a_database(settings, expected):
    """iu-listen connects as Django does: to the same server, with the same parameters of libpq, and in the same role.

    Fails when: a character of the password is not escaped, or an option of Django is passed to the server.
    """
    address = parse(dsn(settings), {})
    assert (dict(address.driver), address.hosts, dict(address.settings)) == expected


def test_checks_without_databases_do_nothing():
    """``manage.py check`` without ``--database`` uses no database."""
    set_up()
    assert run_checks() == []
