"""Whether a consumer may work on a database: the texts for the refusals of fn_iu_outbox_admission."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Final

from iu_listen.model.address import parse
from iu_listen.model.settings import Settings

_REANCHOR: Final = "The history is not that of the cursor: iu-listen cursor reanchor --plan"

#: Problem and hint, by the code of the refusal.
WORDS: Final[defaultdict[str, tuple[str, str]]] = defaultdict(
    lambda: ("the cursor is not believed", _REANCHOR),
    {
        "standby": ("the server is a standby", "Connect to the primary."),
        "row_security": (
            "row level security hides rows of the outbox or of the package from this role",
            "Give the role BYPASSRLS, or switch row level security off on these tables: iu-listen doctor names them.",
        ),
        "foreign_site": (
            "this database may be a copy: no consumer at this address has worked here before",
            "Only if it may deliver: iu-listen cursor site --accept last",
        ),
        "foreign_system": ("the cluster is a copy with another system identifier", _REANCHOR),
        "cursor_ahead": ("the cursor lies ahead of this server", _REANCHOR),
    },
)


def site_of(settings: Settings) -> str:
    """The site of these settings: the name that was configured, else the sorted addresses of the servers."""
    if settings.site:
        return settings.site
    address = parse(settings.dsn, os.environ)
    hosts = sorted(f"{host}:{port}" for host, port in address.hosts)
    return ",".join(hosts) or f"local:{address.driver.get('port', '5432')}"
