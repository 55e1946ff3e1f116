"""Runs a PostgreSQL server for the examples until Ctrl-C, and prints the connection string of its database.

The server comes with the extra `embedded` of iu-listen; its data stays in the directory .iu-listen. A real project uses
a server of its own.
"""

import signal
from contextlib import suppress

from iu_listen import embedded

with embedded.running(tcp=True) as server, suppress(KeyboardInterrupt):
    print(f"export IU_LISTEN_DSN={server.tcp_dsn()}", flush=True)
    signal.pause()
