"""The command dev: a handler on the embedded server, with one file and one command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from cli.command import environment, refused, wait_for_words

SHOP = """
from dataclasses import dataclass

from iu_listen import on


@dataclass
class Order:
    total: float


def stamp(order: Order) -> int:
    return [1][int(order.total) - 5]


@on("order_placed")
def send_mail(order: Order) -> None:
    stamp(order)
    with open("mails", "a") as file:
        file.write(f"mail about {order.total}\\n")
"""
#: The traceback of an order for which there is no stamp: the frames of the application only.
NO_STAMP = """
Traceback (most recent call last):
  File "{file}", line 18, in send_mail
    stamp(order)
  File "{file}", line 13, in stamp
    return [1][int(order.total) - 5]
           ~~~^^^^^^^^^^^^^^^^^^^^^^
IndexError: list index out of range
"""


def iu_listen(folder: Path, *args: str) -> Any:
    """Run a command in a directory, and return its answer."""
    done = subprocess.run(
        [sys.executable, "-m", "iu_listen", *args, "--json"],
        cwd=folder,
        env=environment(str(folder)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def mails(folder: Path, count: int) -> list[str]:
    """The first lines of the file that the handler writes; waits for so many."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        path = folder / "mails"
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= count:
            return lines
        time.sleep(0.1)
    raise AssertionError(f"{count} mails did not come")


@pytest.mark.slow
def test_an_event_reaches_a_handler_and_a_change_is_seen(tmp_path):
    """A file and a command are enough, errors are shown in the words of the file, and a change begins again.

    Fails when: the types, the routes, the gates or the database need another step; a change is not noticed; a module
    that cannot be imported is called ready; a failed attempt shows no traceback, or frames of libraries; or the route
    of a handler that is gone stays live.
    """
    shop, log = tmp_path / "shop.py", tmp_path / "log"
    shop.write_text(SHOP + "oops\n")
    with log.open("w") as file, running(tmp_path, file):
        wait_for_words(log, "The consumer has ended")
        said = log.read_text()
        assert f"File \"{shop}\", line 21, in <module>\n    oops\nNameError: name 'oops' is not defined" in said
        assert "shop cannot be imported: NameError: name 'oops' is not defined (shop.py, line 21)" in said
        assert said.count("variable IU_LISTEN_LINGR: it has no effect. Did you mean IU_LISTEN_LINGER?") == 1
        assert ("Ready" in said, "importlib" in said) == (False, False)

        shop.write_text(SHOP)
        wait_for_words(log, "shop.py has changed")
        wait_for_words(log, "Ready: order_placed.send_mail. In another terminal")
        for payload in ('{"total": 5}', '{"totl": 5}', '{"total": 7}', '{"total": 5.5}'):
            iu_listen(tmp_path, "emit", "--type", "order_placed", "--payload", payload)
        assert mails(tmp_path, 2) == ["mail about 5", "mail about 5.5"]
        (letter,) = iu_listen(tmp_path, "dead-letter", "list")
        assert (letter["route"], letter["failure_code"]) == ("order_placed.send_mail", "invalid_payload")
        wait_for_words(log, "order_placed.send_mail failed: event")
        wait_for_words(log, NO_STAMP.format(file=shop))

        shop.write_text(SHOP.replace("send_mail", "send_letter").replace("mail about", "letter about"))
        wait_for_words(log, "Route order_placed.send_mail is a dry run now: shop declares no handler with this name.")
        iu_listen(tmp_path, "emit", "--type", "order_placed", "--payload", '{"total": 5}')
        assert mails(tmp_path, 3)[2] == "letter about 5"
        routes = {r["route"]: r["dry_run"] for r in iu_listen(tmp_path, "route", "list")}
        assert routes == {"order_placed.send_letter": False, "order_placed.send_mail": True}

        shop.write_text(SHOP)
        wait_for_words(log, "Route order_placed.send_letter is a dry run now")
        iu_listen(tmp_path, "emit", "--type", "order_placed", "--payload", '{"total": 5}')
        assert mails(tmp_path, 4)[3] == "mail about 5"


@contextmanager
def running(folder: Path, log: IO[str]) -> Iterator[None]:
    """Run dev in a directory."""
    args = [sys.executable, "-m", "iu_listen", "dev", "--app", "shop"]
    process = subprocess.Popen(
        args, cwd=folder, env=environment(str(folder), env={"IU_LISTEN_LINGR": "1"}), stdout=log, stderr=log
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_routes_of_no_handlers():
    """route sync without --app and without IU_LISTEN_APP names both; with one of them it uses that module."""
    refused(2, "no handlers are named", "IU_LISTEN_APP")("route", "sync")
    refused(2, "there is no module nothing")("route", "sync", env={"IU_LISTEN_APP": "nothing"})
    refused(2, "there is no module other")("route", "sync", "--app", "other", env={"IU_LISTEN_APP": "nothing"})


def test_dev_refuses_every_other_database():
    """With a database in the environment, dev opens no gate and names the other way."""
    refused(2, "works on the embedded server only", "route sync")(
        "dev", "--app", "shop", env={"IU_LISTEN_DSN": "postgresql://127.0.0.1:1/x"}
    )


@pytest.mark.parametrize("args", [("emit", "--type", "x"), ("attempts",), ("status",), ("run",), ("doctor",)], ids=str)
def test_a_command_creates_no_database(args):
    """In a directory without a database a command names the ways to one, and creates none (run() checks that)."""
    refused(2, "there is no database here", "IU_LISTEN_DSN", "iu-listen dev", "iu-listen up")(*args)
