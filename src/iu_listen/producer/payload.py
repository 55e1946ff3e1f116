"""Payloads of events: from a dict, a dataclass, or a model of pydantic or msgspec, to JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from iu_listen.model.errors import ConfigurationError

#: The character NUL in a JSON text: valid there, and not in jsonb. A text that contains a backslash and u0000 differs.
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class InvalidPayload(ConfigurationError, ValueError):
    """A payload that cannot be written to the outbox. It is raised before the database is asked."""


def payload_json(event_type: str, payload: Any) -> str:
    """The JSON text of a payload.

    Args:
        event_type: Type of the event, for the error.
        payload: A mapping, a dataclass, or a model of pydantic or msgspec. Values may also be dates, times, UUIDs and
            decimals, which become text.

    Raises:
        InvalidPayload: It is not an object, or it has a value that JSON or PostgreSQL cannot represent.
    """
    try:
        built = builtins(payload)
        text = json.dumps(built, allow_nan=False, default=_as_text, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(
            f"the payload of {event_type} cannot be written as JSON: {error}",
            "Use texts, numbers, booleans, lists and objects; dates, times, UUIDs and decimals become texts.",
        ) from error
    if not isinstance(built, Mapping):
        raise InvalidPayload(
            f"the payload of {event_type} is of the type {type(payload).__name__}",
            "A payload is an object with keys: a dict, a dataclass, or a model.",
        )
    if _NUL.search(text):
        raise InvalidPayload(f"the payload of {event_type} contains the character NUL", "PostgreSQL cannot store it.")
    return text


def builtins(payload: Any) -> Any:
    """A typed payload as mappings, lists and scalars; any other payload is returned unchanged."""
    if hasattr(payload, "model_dump"):
        return payload.model_dump(mode="json")
    if hasattr(type(payload), "__struct_fields__"):
        import msgspec  # noqa: PLC0415 only users of msgspec have it

        return msgspec.to_builtins(payload)
    if dataclasses.is_dataclass(payload) and not isinstance(payload, type):
        return dataclasses.asdict(payload)
    return payload


def _as_text(value: object) -> str:
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    raise TypeError(f"a value of the type {type(value).__name__} has no JSON form")
