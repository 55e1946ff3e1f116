"""Events of a project of Django: they are written in its transactions, and reach its handlers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from decimal import Decimal
from functools import partial
from pathlib import Path

import anyio
import pytest
from django.core.management import call_command
from django.db import IntegrityError, connections, transaction
from django.db.transaction import TransactionManagementError

from cli.command import on_one_server, rows, seen, value
from django_app import settings
from iu_listen.django import emit
from iu_listen.django.discovery import find_handlers
from iu_listen.producer.payload import InvalidPayload

pytestmark = on_one_server


@pytest.fixture
def shop(migrated):
    """The models of the app ``shop``."""
    from django_app.shop import models

    return models


def written(dsn: str) -> list[tuple[str | None, dict]]:
    return [
        (row[0], json.loads(row[1])) for row in rows(dsn, "select event_subject_ref, safe_payload from event_outbox")
    ]


def place(models, total: int, using: str = "default") -> None:
    """A service function, as an application has it."""
    with transaction.atomic(using=using):
        order = models.Order.objects.using(using).create(total=total)
        emit("order_placed", {"id": order.pk, "price": Decimal("1.50")}, subject=order.pk, actor="ann", using=using)


@pytest.mark.parametrize("using", ["default", "other"])
def test_an_event_is_written_in_the_transaction(migrated, shop, using):
    """The event has the attributes of the call, in the database of the alias."""
    place(shop, 5, using)
    assert written(migrated) == [("1", {"id": 1, "price": "1.50"})]
    assert value(migrated, "select actor_ref from event_outbox") == "ann"


def test_a_rollback_leaves_no_event(migrated, shop):
    """A block that is rolled back leaves no event; an inner block takes only its own event with it.

    Fails when: the event is written outside the transaction of the connection.
    """
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        place(shop, 1)
        raise ZeroDivisionError
    with transaction.atomic():
        emit("order_placed", {"n": 1})
        with pytest.raises(IntegrityError), transaction.atomic():
            emit("nope")
        with pytest.raises(InvalidPayload):
            emit("order_placed", {"a": object()})
        emit("order_placed", {"n": 2})
    assert [payload for _, payload in written(migrated)] == [{"n": 1}, {"n": 2}]
    assert value(migrated, "select count(*) from shop_order") == 0


def test_an_event_outside_a_transaction_is_refused(migrated, shop):
    """emit() without a transaction raises an error that names the remedy, and writes nothing.

    Fails when: the event is written in autocommit, beside the change of the data.
    """
    with pytest.raises(TransactionManagementError, match=r"use transaction\.atomic"):
        emit("order_placed", {})
    connections["default"].set_autocommit(False)
    try:
        emit("order_placed", {})
        transaction.commit()
    finally:
        connections["default"].set_autocommit(True)
    assert len(written(migrated)) == 1


@pytest.fixture
def iu_listen(monkeypatch):
    """``manage.py iu_listen`` in this process; the environment names no database and no handlers."""
    for name in ("IU_LISTEN_DSN", "IU_LISTEN_APP"):
        monkeypatch.delenv(name, raising=False)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield partial(call_command, "iu_listen")
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_events_reach_the_handlers_of_the_project(migrated, shop, iu_listen):
    """The commands use the database and the handlers of the project, and a handler can use its models.

    Fails when: the consumer needs another configuration than that of the project.
    """
    iu_listen("route", "sync", "--yes")
    for gate in ("worker", "delivery"):
        iu_listen("gate", "open", gate)
    iu_listen("route", "live", "order_placed.send_mail", "--yes", "--why", "a test")
    place(shop, 5)
    # In a process of its own, because the command ends its process if threads are left.
    done = subprocess.run(
        [sys.executable, "-m", "django", "iu_listen", "run", "--until-idle"],
        env={
            "PATH": os.environ["PATH"], "DATABASE_DSN": migrated, "DJANGO_SETTINGS_MODULE": settings.__name__,
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert value(migrated, "select total from shop_order") == 0


def test_a_handler_leaves_no_connection_open(migrated, shop):
    """After each call the connections of its thread are closed, because CONN_MAX_AGE is 0.

    Fails when: they are not closed, as Django closes them after a request.
    """
    from django_app.shop.handlers import pids

    place(shop, 5)
    [handler] = find_handlers()

    async def call() -> None:
        await handler({"id": 1})
        # The thread still exists.
        gone = "select not exists (select from pg_stat_activity where pid = $1)"
        await anyio.to_thread.run_sync(seen, migrated, gone, pids[-1])

    anyio.run(call)


def test_the_exit_code_is_that_of_the_command(migrated, iu_listen):
    """A command of iu-listen that fails ends manage.py with its exit code, and changes no variable of the process."""
    before = dict(os.environ)
    with pytest.raises(SystemExit) as ended:
        iu_listen("route", "show", "nothing")
    assert ended.value.code == 2
    assert dict(os.environ) == before
