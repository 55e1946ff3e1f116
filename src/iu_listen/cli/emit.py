"""The command emit: write events through the governed emitter."""

from __future__ import annotations

import json
from typing import Annotated
from uuid import UUID

import anyio
from cyclopts import App, Parameter

from iu_listen.admin import events
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import in_range
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError


def register(app: App) -> None:
    """Add this command."""
    app.command(emit)


def emit(
    *,
    type: Annotated[str, Parameter(help="Event type, registered and active.")] = "version_applied",
    address: Annotated[str, Parameter(help="Canonical address of the subject.")] = "iu-listen/emit",
    subject: Annotated[UUID | None, Parameter(help="Id of the subject. Default: a new one for each event.")] = None,
    actor: Annotated[str, Parameter(help="Actor of the events.")] = "iu-listen emit",
    payload: Annotated[str, Parameter(help="JSON object of metadata.")] = "{}",
    count: Annotated[
        int, Parameter(help="Number of events, in one transaction.", validator=in_range(1, 1_000_000))
    ] = 1,
    options: ConnectionOptions | None = None,
) -> int:
    """Write events to the outbox through fn_iu_emit_event, as producers do, and print their ids."""
    try:
        parsed = json.loads(payload)
    except (ValueError, RecursionError) as error:
        if not isinstance(error, json.JSONDecodeError):
            reason = (
                "it contains a number that is too long" if isinstance(error, ValueError) else "it is nested too deeply"
            )
            raise ConfigurationError(f"the payload cannot be read: {reason}") from error
        raise ConfigurationError(
            f"the payload is not JSON: {error}", """Quote it: --payload '{"key": "value"}'"""
        ) from error
    if not isinstance(parsed, dict):
        raise ConfigurationError("the payload must be a JSON object", """For example: --payload '{"key": "value"}'""")

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_base(connection)
            await requirements.require_primary(connection)
            ids = await events.emit(connection, type, address, subject, actor, payload, count)
        if options and options.json:
            output.as_json({"events": ids})
        elif count == 1:
            output.line(str(ids[0]))
        else:
            output.line(f"{output.text(len(ids))} events, the first is {ids[0]}")
        return 0

    return anyio.run(run)
