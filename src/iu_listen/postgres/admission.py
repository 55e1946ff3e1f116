"""Whether a consumer may work on a database: the texts for the refusals of fn_iu_outbox_admission."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Final

from iu_listen.model.address import parse
from iu_listen.model.settings import Settings

_REANCHOR: Final = "Check the history of the database: iu-listen cursor reanchor --plan"

#: Problem and hint, by the code of the refusal.
ADMISSION_TEXTS: Final[defaultdict[str, tuple[str, str]]] = defaultdict(
    lambda: ("the cursor does not belong to this database's history", _REANCHOR),
    {
        "standby": ("the server is a standby server", "Connect to the primary server."),
        "row_security": (
            "row level security hides rows of the outbox or of the package from this role",
            "Give the role BYPASSRLS, or switch row level security off on these tables: iu-listen doctor names them.",
        ),
        "foreign_site": (
            "this database may be a copy: no consumer has worked on it at this address",
            "If this database may deliver, accept its address: iu-listen cursor site --accept last",
        ),
        "foreign_system": ("the database cluster is a copy with another system identifier", _REANCHOR),
        "cursor_ahead": ("the cursor is ahead of the transactions of this server", _REANCHOR),
    },
)


def site_of(settings: Settings) -> str:
    """The site of these settings: the name that was configured, else the sorted addresses of the servers."""
    if settings.site:
        return settings.site
    address = parse(settings.dsn, os.environ)
    hosts = sorted(f"{host}:{port}" for host, port in address.hosts)
    return ",".join(hosts) or f"local:{address.driver.get('port', '5432')}"
