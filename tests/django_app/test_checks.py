"""manage.py check --database: a table of faults, each with the id of its message."""

from __future__ import annotations

import io

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings

from cli.command import execute, on_one_server
from django_app.settings import Router

pytestmark = on_one_server
VERSION = "update iu_migration set schema_version = '{}'"
#: Faults, each with the statements that make it, and the messages.
FAULTS = {
    "none": ("", []),
    "package missing": ("drop table iu_migration", ["iu_listen.W002"]),
    "base incomplete": ("drop trigger trg_event_outbox_type_validate on event_outbox", ["iu_listen.E001"]),
    "older": (VERSION.format("0.9"), ["iu_listen.W003"]),
    "newer": (VERSION.format("1.99"), ["iu_listen.W004"]),
    "too new": (VERSION.format("2.0"), ["iu_listen.E002"]),
    "event type missing": ("delete from event_type_registry", ["iu_listen.W005"]),
}


def problems(*databases: str) -> list[str]:
    return [message.id for message in run_checks(databases=databases)]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_a_message(migrated, fault):
    """A database without a fault has no message, and each fault has its own."""
    statements, expected = FAULTS[fault]
    execute(migrated, statements or "select 1")
    assert problems("default") == expected


def test_an_empty_database_is_a_warning_with_the_remedy(project):
    """The check names the command that installs the package, and does not keep that command from running.

    Fails when: the message is an error, for which migrate ends.
    """
    out = io.StringIO()
    with pytest.raises(SystemCheckError, match=r"iu_listen\.W002"):
        call_command("check", databases=["default"], fail_level="WARNING")
    call_command("migrate", stdout=out, stderr=out, verbosity=1, skip_checks=False)
    assert "python manage.py migrate iu_listen installs it" in out.getvalue()
    call_command("check", databases=["default"], fail_level="WARNING", stdout=out)


def test_a_database_that_is_no_postgresql(project):
    """A database of another kind has a warning, unless a router excludes it."""
    assert problems("lite") == ["iu_listen.W001"]
    Router.excluded.add("lite")
    try:
        assert problems("lite") == []
    finally:
        Router.excluded.clear()


def test_a_module_of_handlers_that_cannot_be_imported(migrated):
    """A module of handlers that cannot be imported is an error, whose message does not contain the exception's text."""
    with override_settings(INSTALLED_APPS=["iu_listen.django", "django_app.broken"]):
        [message] = run_checks(databases=["default"])
    assert message.id == "iu_listen.E003"
    assert "ValueError" in message.msg
    assert "a secret" not in message.msg


def test_the_check_of_another_app(project):
    """``manage.py check shop --database default`` does not check iu-listen."""
    call_command("check", "shop", databases=["default"], fail_level="WARNING", stdout=io.StringIO())
    with pytest.raises(CommandError):
        call_command("check", "iu_listen", databases=["default"], fail_level="WARNING")
