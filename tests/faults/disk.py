"""A small filesystem that can be filled: a separate image, if mounting is permitted."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from clusters import psql
from iu_listen.embedded.keeper import Server, run_as, server_account

PREFIX = "iu-listen-image-"


@cache
def unavailable() -> str:
    """The reason why no small filesystem is possible here; empty if it is."""
    try:
        with small_filesystem(1):
            return ""
    except OSError as error:
        return str(error)


@contextmanager
def small_filesystem(megabytes: int, account: tuple[int, int] | None = None) -> Iterator[Path]:
    """A directory with limited space; unused space costs nothing. Raises OSError if it is not possible."""
    _remove_stale_filesystems()
    with TemporaryDirectory(prefix=PREFIX) as name, (Path(name) / "new").open("wb") as file:
        image, place = Path(name) / "image", Path(name) / "disk"
        Path(name).chmod(0o755)
        place.mkdir()
        file.truncate(megabytes * 2**20)
        # Locked before the file gets the name for which _sweep() searches.
        fcntl.flock(file, fcntl.LOCK_EX)
        os.rename(file.name, image)
        # No blocks are reserved for root, which fills it: so it is also full for PostgreSQL's account.
        _run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image)
        _run("mount", "-o", "loop", image, place)
        try:
            if account is not None:
                os.chown(place, *account)
            yield place
        finally:
            # A lazy umount succeeds even if a process still has a file open there.
            _run("umount", "--lazy", place)


def _remove_stale_filesystems() -> None:
    """Remove filesystems of killed processes; the kernel has released the lock of a process that has ended."""
    for image in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/image"):
        with suppress(OSError), image.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(OSError):
                _run("umount", "--lazy", image.with_name("disk"))
            shutil.rmtree(image.parent)


@contextmanager
def own_disk(megabytes: int) -> Iterator[Path]:
    """A directory with a separate filesystem of at most half of the free space; if not possible, a plain directory."""
    with ExitStack() as stack:
        if unavailable():
            place = Path(stack.enter_context(TemporaryDirectory(prefix=PREFIX)))
        else:
            free = shutil.disk_usage(tempfile.gettempdir()).free // 2**20
            place = stack.enter_context(small_filesystem(min(megabytes, free // 2)))
        # If the tests run as root, PostgreSQL's account needs access.
        place.chmod(0o755)
        yield place


def _run(*command: str | Path) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PATH=path))
    except FileNotFoundError as error:
        raise OSError(f"{command[0]} is not installed") from error
    if done.returncode:
        raise OSError(f"{command[0]} is not allowed here: {done.stderr.strip()}")


@contextmanager
def filled_disk(place: Path) -> Iterator[None]:
    """Leave no free block for the length of a block."""
    ballast = place / "ballast"
    try:
        with ballast.open("wb") as file:
            _fill(file.fileno())
        yield
    finally:
        ballast.unlink(missing_ok=True)


def _fill(file: int) -> None:
    """Allocate smaller and smaller pieces, until not even the smallest fits."""
    end = 0
    for size in (2**power for power in range(30, 11, -1)):
        try:
            while True:
                os.posix_fallocate(file, end, size)
                end += size
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


@contextmanager
def wal_in(server: Server, place: Path) -> Iterator[None]:
    """Keep the server's WAL in ``place``, as on a separate disk; the server is restarted before and after."""
    home, there = server.data / "pg_wal", place / "pg_wal"
    psql(server, "alter system set max_wal_size = '48MB'; alter system set min_wal_size = '32MB'")
    try:
        _move(server, home, there)
        home.symlink_to(there)
        server.start()
        yield
    finally:
        if home.is_symlink():
            server.stop("immediate")
            home.unlink()
            _move(server, there, home)
        server.start()
        psql(server, "alter system reset max_wal_size; alter system reset min_wal_size")


def _move(server: Server, source: Path, target: Path) -> None:
    server.stop()
    # Owner and modes are preserved.
    done = run_as(["/bin/cp", "-a", source, target], server_account(server.data))
    assert done.returncode == 0, done.stdout
    shutil.rmtree(source)


@contextmanager
def tables_in(server: Server, place: Path, *tables: str, database: str = "iu") -> Iterator[None]:
    """Keep these tables and their indexes in a tablespace in ``place``."""
    psql(server, f"create tablespace small location '{place}'")
    try:
        _set_tablespace(server, database, tables, "small")
        yield
    finally:
        _set_tablespace(server, database, tables, "pg_default")
        psql(server, "drop tablespace small")


def _set_tablespace(server: Server, database: str, tables: tuple[str, ...], tablespace: str) -> None:
    names = ", ".join(f"'{table}'::regclass" for table in tables)
    script = rf"""
        select format('alter table %s set tablespace {tablespace}', t) from unnest(array[{names}]) t
        union all
        select format('alter index %s set tablespace {tablespace}', indexrelid::regclass)
          from pg_index where indrelid = any (array[{names}]::oid[])
        \gexec
        """
    psql(server, script, database)
