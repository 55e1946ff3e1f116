"""How people come in. Parses, calls, prints; no SQL, no decisions. Errors become exit codes here:

0 fine · 1 the answer is no · 2 usage or configuration · 3 cannot reach the database
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from iu_listen import __version__
from iu_listen.cli import change, demo, emit, look, prove, service, show
from iu_listen.model.errors import IuListenError

HELP = """Listens to a PostgreSQL outbox: routes every committed event once, audits it, and shows that it does.

The first five minutes: `iu-listen demo` shows everything on a database of its own.
On your database: `apply --plan`, `apply`, `gate open worker`, `run`; then `status`, `health`, `doctor`.

The database is --dsn, else IU_LISTEN_DSN, else the PG* variables, else an embedded server in .iu-listen/.
Exit codes: 0 fine, 1 the answer is no, 2 usage or configuration, 3 cannot reach the database."""

app = App(name="iu-listen", help=HELP, version=__version__, help_format="markdown")
for group in (service, demo, prove, look, change, emit):
    group.register(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    try:
        code = app(
            list(sys.argv[1:] if argv is None else argv),
            exit_on_error=False,
            print_error=True,
            error_console=show.err(),
            result_action="return_value",
        )
    except CycloptsError:
        return 2
    except IuListenError as error:
        show.problem(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us has read enough.
        sys.stderr.close()
        return 0
    return code if isinstance(code, int) else 0
