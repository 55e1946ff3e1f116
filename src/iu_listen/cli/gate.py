"""The command group gate: show, open and close the gates."""

from __future__ import annotations

from typing import Any, Literal

import anyio
from cyclopts import App

from iu_listen.admin import gates
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.install import requirements

GateName = Literal["master", "worker", "delivery"]

gate: App = App(name="gate", help="Show, open and close gates. A gate whose key is missing in dot_config is closed.")


def register(app: App) -> None:
    """Add this group."""
    app.command(gate)


@gate.command(name="show")
def gate_show(*, options: ConnectionOptions | None = None) -> int:
    """Show every gate and the time since which it has its value."""

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_base(connection)
            _print_answer(await gates.all_gates(connection), options)
        return 0

    return anyio.run(run)


@gate.command(name="open")
def gate_open(name: GateName, /, *, options: ConnectionOptions | None = None) -> int:
    """Open a gate. A waiting consumer begins to work within a second."""
    return _set_gate(name, options, opened=True)


@gate.command(name="close")
def gate_close(name: GateName, /, *, options: ConnectionOptions | None = None) -> int:
    """Close a gate. The running batch is completed, and no further one begins."""
    return _set_gate(name, options, opened=False)


def _set_gate(name: GateName, options: ConnectionOptions | None, *, opened: bool) -> int:
    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_base(connection)
            await requirements.require_primary(connection)
            await gates.set_gate(connection, name, opened=opened)
            _print_answer(await gates.all_gates(connection), options)
        return 0

    return anyio.run(run)


def _print_answer(found: list[dict[str, Any]], options: ConnectionOptions | None) -> None:
    if options and options.json:
        output.as_json(found)
    else:
        print_gates(found)


def print_gates(found: list[dict[str, Any]]) -> None:
    """Print the table of gates."""
    output.table(
        ("gate", "state", "since", "key"),
        ((g["gate"], output.mark(g["open"], "open", "closed"), output.ago(g["since"]), g["key"]) for g in found),
    )
