"""The gates: reads and changes the settings in dot_config that let the worker, the routes or deliveries run."""

from __future__ import annotations

from iu_listen.model.errors import Refused
from iu_listen.model.routing import GATES
from iu_listen.postgres.queries import Row, rows
from iu_listen.postgres.session import Connection


async def all_gates(connection: Connection) -> list[Row]:
    """All gates with name, key, state, stored value and time of the last change. A missing key is a closed gate."""
    stored = {row["key"]: row for row in await rows(connection, "gate_values")}
    return [
        {
            "gate": name,
            "key": key,
            "open": key in stored and stored[key]["value"] == "true",
            "value": stored[key]["value"] if key in stored else None,
            "since": stored[key]["updated_at"] if key in stored else None,
        }
        for name, key in GATES.items()
    ]


async def closed_gates(connection: Connection) -> list[str]:
    """The closed gates that stop routing. The delivery gate does not stop routing, and is closed by default."""
    return [g["gate"] for g in await all_gates(connection) if not g["open"] and g["gate"] != "delivery"]


async def set_gate(connection: Connection, gate: str, *, opened: bool) -> None:
    """Open or close a gate.

    Raises:
        Refused: The key of the gate is missing in dot_config.
    """
    changed = await rows(connection, "set_gate", GATES[gate], "true" if opened else "false")
    if not changed:
        raise Refused(
            f"the key {GATES[gate]} is missing in dot_config, so the gate is closed",
            "`iu-listen apply` creates the key.",
        )
