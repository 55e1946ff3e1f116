"""A PgBouncer in front of a server, if it is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import asyncpg

from faults.cleanup_on_exit import cleanup_after_process
from support import wait_until

PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
#: PgBouncer refuses to run as root, as PostgreSQL does.
ACCOUNT = (pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid) if os.geteuid() == 0 else None


def unavailable() -> str:
    """The reason why there is no pooler here; empty if there is."""
    return "" if PROGRAM else "pgbouncer is not installed"


class Pooler:
    """A PgBouncer that can be started, killed and started again; made by pooling().

    Attributes:
        dsn: The DSN through the pooler.
    """

    def __init__(self, upstream: str, home: Path, mode: str) -> None:
        parts = urlsplit(upstream)
        database = parts.path.removeprefix("/")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._ini = home / "pgbouncer.ini"
        self.pid_file = home / "run" / "pid"
        self.pid_file.parent.mkdir()
        if ACCOUNT is not None:
            os.chown(self.pid_file.parent, *ACCOUNT)
        self._ini.write_text(
            f"""
[databases]
{database} = host=127.0.0.1 port={parts.port} dbname={database} user=postgres password={parts.password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
server_login_retry = 0.2
pidfile = {self.pid_file}
"""
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.dsn = f"postgresql://postgres@127.0.0.1:{port}/{database}"

    async def start(self) -> None:
        """Start it, and wait until it connects to the server."""
        who = {"user": ACCOUNT[0], "group": ACCOUNT[1], "extra_groups": []} if ACCOUNT is not None else {}
        self._process = subprocess.Popen(
            [PROGRAM, self._ini], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **who
        )
        await wait_until(self._answers, "PgBouncer answers")

    def kill(self) -> None:
        """Kill it, with every connection that goes through it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def _answers(self) -> bool:
        with suppress(OSError, asyncpg.PostgresError):
            connection = await asyncpg.connect(self.dsn, statement_cache_size=0)
            connection.terminate()
            return True
        return False


@contextmanager
def pooling(upstream: str, mode: str = "transaction") -> Iterator[Pooler]:
    """A pooler, not started yet, in front of a server that is reached over TCP."""
    with TemporaryDirectory(prefix="iu-listen-pooler-") as name:
        home = Path(name)
        home.chmod(0o755)
        pooler = Pooler(upstream, home, mode)
        try:
            with cleanup_after_process('kill -9 "$(cat "$1")"', pooler.pid_file):
                yield pooler
        finally:
            pooler.kill()
