"""Takes a backup before the first durable change: pg_dump, and pg_restore -l to check that the dump can be read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from iu_listen.model.address import parse
from iu_listen.model.errors import Refused
from iu_listen.model.settings import mask


def client_programs(major: int, directories: Iterable[Path]) -> Path | None:
    """The first directory with a pg_dump of at least this major version and with pg_restore; None if there is none.

    The directory of the pg_dump on PATH is looked at first.
    """
    on_path = shutil.which("pg_dump")
    for directory in [*([Path(on_path).parent] if on_path else []), *directories]:
        if (_version(directory / "pg_dump") or 0) >= major and (directory / "pg_restore").exists():
            return directory
    return None


def _version(program: Path) -> int | None:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"(\d+)\.", done.stdout)
    return int(found[1]) if found else None


def environment(dsn: str | None, database: str) -> tuple[str, dict[str, str]]:
    """A connection string without its password, and an environment that contains the password.

    The password must not be an argument: ps shows the arguments of a process to all users.
    """
    address = parse(dsn, os.environ)
    environ = dict(os.environ)
    if password := address.driver.get("password"):
        environ["PGPASSWORD"] = password
    return address.without_secrets(database), environ


def take_backup(dsn: str | None, database: str, programs: Path, directory: Path) -> dict[str, str | int]:
    """Dump the database into ``directory`` and read the dump's table of contents.

    Returns:
        The file, its size in bytes and the number of entries in it.

    Raises:
        Refused: The directory is not writable, or the dump failed or cannot be read. An unusable file is removed.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    # The name of a database may contain any character, for example a slash, which would lead to another directory.
    name = re.sub(r"[^\w.-]", "_", database)
    file = directory / f"{name}-{stamp}.dump"
    plain, environ = environment(dsn, database)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Readable for the owner only: the dump contains the data of the database.
        file.touch(mode=0o600)
    except OSError as error:
        raise Refused(f"cannot write into {directory}: {error.strerror}", "Give another --backup-dir.") from error
    try:
        _run([programs / "pg_dump", "-Fc", "-f", file, "-d", plain], environ)
        listing = _run([programs / "pg_restore", "-l", file], environ)
    except Refused:
        file.unlink(missing_ok=True)
        raise
    entries = sum(1 for line in listing.splitlines() if line and not line.startswith(";"))
    return {"file": str(file), "bytes": file.stat().st_size, "entries": entries}


def _run(command: list[str | Path], environ: dict[str, str]) -> str:
    done = subprocess.run(command, env=environ, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        reason = mask(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
        raise Refused(
            f"{Path(command[0]).name} failed: {reason}",
            "Check that the disk has room and that this role may read all tables.",
        )
    return done.stdout
