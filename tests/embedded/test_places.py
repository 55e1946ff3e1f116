"""Directories and accounts in which the embedded server runs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from embedded.embedded_helpers import Command, as_root, copy_of_the_wheel, keeper, nothing_runs, query
from iu_listen import embedded
from iu_listen.embedded import EmbeddedError, binaries, running


def test_an_unusable_data_directory_is_refused(place: Path) -> None:
    """A root that cannot be created, or that is writable for all, is refused with its name."""
    (place / "file").touch()
    (place / "open").mkdir()
    (place / "open").chmod(0o1777)

    with pytest.raises(EmbeddedError, match=r"cannot use .*/file/data"), running(place / "file" / "data"):
        pass
    with pytest.raises(EmbeddedError, match="every account may write"), running(place / "open"):
        pass


def test_the_default_data_directory_can_be_set() -> None:
    """The data is in .iu-listen, or in the directory that IU_LISTEN_DATA_DIR names."""
    assert embedded.default_root({}) == Path.cwd() / ".iu-listen"
    assert embedded.default_root({"IU_LISTEN_DATA_DIR": "/some/where"}) == Path("/some/where")


def test_a_long_path_is_supported(place: Path) -> None:
    """The path of the data may be longer than the longest path of a socket."""
    root = place / ("long " * 20) / ("longer" * 20) / "data"
    with running(root, durable=False) as server:
        assert query(server.dsn(), "select 1") == "1"
        assert len(str(server.socket_dir)) < 80


@as_root
def test_a_socket_directory_of_another_user_is_not_used(root: Path) -> None:
    """A socket directory that another user has created is not used."""
    with running(root, durable=False) as server:
        pass
    server.socket_dir.mkdir()
    try:
        with running(root, durable=False) as again:
            assert again.socket_dir != server.socket_dir
            assert query(again.dsn(), "select 1") == "1"
    finally:
        server.socket_dir.rmdir()


@as_root
def test_an_unreachable_data_directory_is_put_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and binaries in a directory that only root can enter are put elsewhere; its mode is not changed."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    copy_of_the_wheel(closed / "site-packages")
    monkeypatch.syspath_prepend(closed / "site-packages")
    root = closed / "clone" / ".iu-listen"
    before = {path: path.stat().st_mode for path in (closed, closed / "site-packages", place, Path("/tmp"))}
    assert closed in binaries(18).parents

    with running(root, durable=False) as server:
        query(server.dsn(), "create table kept ()")
        assert (root / "pg18").is_symlink()
        assert place / "system" in server.data.parents
        assert place / "system" in server.bin.parents
    made = server.bin.stat().st_ino
    with running(root, durable=False) as again:
        assert query(again.dsn(), "select count(*) from kept") == "0"
        assert again.bin.stat().st_ino == made
    assert before == {path: path.stat().st_mode for path in before}


@as_root
def test_root_runs_postgresql_under_the_chosen_account(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root runs PostgreSQL as IU_LISTEN_OS_USER, and later as the owner of the data; never as root."""
    monkeypatch.setenv("IU_LISTEN_OS_USER", "nobody")
    with running(root, durable=False) as server:
        assert psutil.Process(server.pid()).username() == "nobody"
    monkeypatch.setenv("IU_LISTEN_OS_USER", "no-such-account")
    with running(root, durable=False) as server:
        assert psutil.Process(server.pid()).username() == "nobody"

    with pytest.raises(EmbeddedError, match="no-such-account"), running(root, 16):
        pass
    monkeypatch.setenv("IU_LISTEN_OS_USER", "root")
    with pytest.raises(EmbeddedError, match="refuses to run as root"), running(root, 16):
        pass


@as_root
def test_an_ordinary_user_runs_the_server_in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user without a home directory runs the server under its own account, in place."""
    nobody = pwd.getpwnam("nobody")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    if subprocess.run([python, "-c", check], user="nobody", cwd="/", check=False).returncode:
        pytest.skip("no python3 >= 3.11 that everybody may run")
    package = place / "packages" / "iu_listen"
    shutil.copytree(str(Path(str(embedded.__file__)).parent), package / "embedded")
    # Copied and not linked, because only root may have access to the repository.
    copy_of_the_wheel(package.parent)
    (place / "home").mkdir()
    os.chown(place / "home", nobody.pw_uid, nobody.pw_gid)
    monkeypatch.setattr(sys, "path", [str(package.parent)])

    command = Command(place / "home" / "data", python, "nobody")
    pid, server = command.server()
    assert server.data == place / "home" / "data" / "pg18"
    assert psutil.Process(pid).username() == psutil.Process(keeper(server)).username() == "nobody"
    assert query(server.dsn(), "select 1") == "1"
    command.end()
    assert nothing_runs(place)


@pytest.mark.parametrize(
    "name", ['dou"ble', "dollar$(touch hacked)", "back`tick`", "back\\slash", "new\nline", "quo'te #?&%41"]
)
def test_a_directory_name_with_shell_characters_is_supported(root: Path, name: str) -> None:
    """If a shell would misread the directory's name, the data is kept in another place, behind a link.

    pg_ctl starts the server by a shell, with the path in double quotes. Fails when: the path is passed to it unchanged.
    """
    home = root / name
    with embedded.running(home, durable=False) as server:
        assert server.pid() is not None
        assert (home / "pg18" / "PG_VERSION").exists()
    assert not list(root.rglob("hacked"))
    data = (home / "pg18").resolve()
    if data.parent != home:
        shutil.rmtree(data.parent)
