"""Payloads of events: from a dict, a dataclass, or a model of pydantic or msgspec, to JSON."""

from __future__ import annotations

import dataclasses
import json
import re
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
    text = json_text(f"the payload of {event_type}", payload)
    if not text.startswith("{"):
        raise InvalidPayload(
            f"the payload of {event_type} is of the type {type(payload).__name__}",
            "A payload is an object with keys: a dict, a dataclass, or a model.",
        )
    return text


def json_text(what: str, value: Any) -> str:
    """The JSON text of a value, in a form that PostgreSQL can store.

    Args:
        what: Name of the value, for the error.
        value: As the payload of payload_json().

    Raises:
        InvalidPayload: It contains a value that JSON or PostgreSQL cannot represent.
    """
    try:
        text = json.dumps(builtins(value), allow_nan=False, default=_as_text, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(
            f"{what} cannot be written as JSON: {error}",
            "Use texts, numbers, booleans, lists and objects; dates, times, UUIDs and decimals become texts.",
        ) from error
    if _NUL.search(text):
        raise InvalidPayload(f"{what} contains the character NUL", "PostgreSQL cannot store it.")
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
