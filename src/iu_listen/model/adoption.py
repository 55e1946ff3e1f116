"""The mapping from an outbox table of an application to event_outbox. install/adoption_sql has the trigger."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.routing import DEFAULT_DOMAIN

#: The name of the trigger on every adopted table. It fires after the triggers of the application, by its name.
TRIGGER: Final = "zz_iu_listen_adopted"
#: The name of every trigger function begins with this.
FUNCTION_PREFIX: Final = "fn_iu_adopted_"
#: The comment of every trigger function begins with this; the mapping follows as JSON.
COMMENT_PREFIX: Final = "Copies events to event_outbox; created by iu-listen adopt: "

#: The fields of an event that a mapping fills, each with its meaning.
FIELDS: Final = {
    "id": "identity of the event; the columns of a primary key or of a unique index",
    "type": "event type; several columns are joined with dots",
    "payload": "payload: jsonb, json, text with JSON, or bytea with JSON",
    "subject": "id of the subject; ordered routes keep the order of a subject",
    "subject-type": "type of the subject",
    "occurred-at": "time of the event; otherwise that of the transaction",
    "traceparent": "text that contains a W3C trace context",
}
REQUIRED: Final = ("id", "type", "payload")

#: The mappings of well-known outboxes. A field in OPTIONAL is left out if the table does not have its column.
PRESETS: Final[Mapping[str, Mapping[str, str]]] = {
    "debezium": {
        "id": "id",
        "type": "type",
        "payload": "payload",
        "subject": "aggregateid",
        "subject-type": "aggregatetype",
        "occurred-at": "timestamp",
        "traceparent": "tracingspancontext",
    },
    "django-outbox-pattern": {
        "id": "id",
        "type": "destination",
        "payload": "body",
        "occurred-at": "added",
        "traceparent": "headers",
    },
    "eventsourcing": {
        "id": "originator_id,originator_version",
        "type": "topic",
        "payload": "state",
        "subject": "originator_id",
    },
    "plain": {
        "id": "id",
        "type": "type",
        "payload": "payload",
        "subject": "subject",
        "occurred-at": "created_at",
        "traceparent": "traceparent",
    },
}
OPTIONAL: Final[Mapping[str, tuple[str, ...]]] = {
    "debezium": ("occurred-at", "traceparent"),
    "django-outbox-pattern": ("occurred-at", "traceparent"),
    "eventsourcing": (),
    "plain": ("subject", "occurred-at", "traceparent"),
}

#: The types of a point in time, and those of a payload.
TIMES: Final = ("timestamp with time zone", "timestamp without time zone", "date")
PAYLOADS: Final = ("jsonb", "json", "text", "character varying", "bytea")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        name: Its name.
        type: Its type, as PostgreSQL names it: ``uuid``, ``jsonb``, ``character varying(255)``.
        not_null: Whether it is declared NOT NULL.
        built_in: Whether the type belongs to PostgreSQL itself.
    """

    name: str
    type: str
    not_null: bool = True
    built_in: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """The table of an application.

    Attributes:
        schema: Its schema.
        name: Its name.
        columns: Its columns, by name.
        unique: The columns of each unique index without a condition and without an expression.
    """

    schema: str
    name: str
    columns: Mapping[str, Column]
    unique: tuple[frozenset[str], ...]

    @property
    def full_name(self) -> str:
        """Schema and name, as they are shown; not quoted."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Adoption:
    """The mapping of one table.

    Attributes:
        table: Schema and name of the table.
        domain: The domain of its events.
        fields: For each field the columns; a text in single quotes is a constant.
    """

    table: str
    domain: str
    fields: Mapping[str, tuple[str, ...]]

    def comment(self) -> str:
        """The comment of the trigger function; parse() reads it."""
        document = {"table": self.table, "domain": self.domain, "fields": {k: list(v) for k, v in self.fields.items()}}
        return COMMENT_PREFIX + json.dumps(document)

    @classmethod
    def parse(cls, comment: str) -> Self | None:
        """The mapping that a comment describes; None if it is not a comment of this program."""
        try:
            document = json.loads(comment.removeprefix(COMMENT_PREFIX))
            fields = {str(k): tuple(map(str, v)) for k, v in document["fields"].items()}
            return cls(str(document["table"]), str(document["domain"]), fields)
        except (ValueError, LookupError, TypeError, AttributeError):
            return None


def plan_adoption(table: Table, preset: str | None, maps: Mapping[str, str], domain: str = DEFAULT_DOMAIN) -> Adoption:
    """The mapping of a table, from a preset and from single fields, which have precedence.

    Args:
        table: The table.
        preset: A key of PRESETS. None: the only preset whose columns the table has, if ``maps`` has not all required
            fields.
        maps: For each field its columns, separated by commas, or a constant in single quotes.
        domain: The domain of the events.

    Raises:
        ConfigurationError: A field, a preset or a column does not exist, or a required field is missing.
        Refused: The columns of the id are not unique and declared NOT NULL.
    """
    for field in maps:
        if field not in FIELDS:
            raise ConfigurationError(f"there is no field {field}" + _nearest(field, FIELDS), _fields_hint())
    if preset is None and not set(REQUIRED) <= set(maps):
        preset = _fitting_preset(table, maps)
    if preset is not None and preset not in PRESETS:
        raise ConfigurationError(
            f"there is no preset {preset}" + _nearest(preset, PRESETS), f"The presets are {', '.join(PRESETS)}."
        )
    chosen = dict(_usable_fields(table, preset)) if preset else {}
    chosen.update(maps)
    fields = {field: _columns(table, field, chosen[field]) for field in FIELDS if field in chosen}
    if missing := [field for field in REQUIRED if field not in fields]:
        raise ConfigurationError(f"the mapping has no {missing[0]}", f"Give it as --map {missing[0]}=COLUMN.")
    _require_unique(table, fields["id"])
    return Adoption(table.full_name, domain, fields)


def _usable_fields(table: Table, preset: str) -> Mapping[str, str]:
    """The fields of a preset without the optional ones whose column is missing or has no suitable type."""

    def usable(field: str, columns: str) -> bool:
        there = set(columns.split(",")) <= set(table.columns)
        return there and (field != "occurred-at" or table.columns[columns].type in TIMES)

    return {
        field: columns
        for field, columns in PRESETS[preset].items()
        if field not in OPTIONAL[preset] or usable(field, columns)
    }


def _fitting_preset(table: Table, maps: Mapping[str, str]) -> str:
    """The first preset whose columns the table has, apart from the fields that are mapped otherwise."""
    for preset in PRESETS:
        fields = _usable_fields(table, preset)
        needed = {c for field, columns in fields.items() if field not in maps for c in columns.split(",")}
        if needed <= set(table.columns):
            return preset
    raise ConfigurationError(
        f"table {table.full_name} has the columns of no preset: {', '.join(table.columns)}",
        "Give the mapping: --map id=COLUMN --map type=COLUMN --map payload=COLUMN; 'TEXT' is a constant.",
    )


def _columns(table: Table, field: str, text: str) -> tuple[str, ...]:
    if is_constant(text):
        if field in ("id", "payload", "occurred-at"):
            raise ConfigurationError(f"{field} must be a column, and not a constant", _fields_hint())
        return (text,)
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in table.columns:
            raise ConfigurationError(
                f"table {table.full_name} has no column {name}" + _nearest(name, table.columns),
                f"Its columns are {', '.join(table.columns)}.",
            )
    if len(names) > 1 and field not in ("id", "type", "subject"):
        raise ConfigurationError(f"{field} must be one column", _fields_hint())
    for name in names:
        _require_type(field, table.columns[name])
    return names


def _require_type(field: str, column: Column) -> None:
    """Refuse a column whose type does not fit, and types that are not built in.

    The trigger function has the rights of its owner, and would run the functions of such a type with these rights.
    """
    fitting = {"occurred-at": TIMES, "payload": PAYLOADS}.get(field)
    if fitting and column.type.partition("(")[0] not in fitting:
        raise ConfigurationError(
            f"column {column.name} has type {column.type}, which does not fit {field}",
            f"The type must be one of {', '.join(fitting)}.",
        )
    if not column.built_in:
        raise ConfigurationError(
            f"column {column.name} has type {column.type}, which is not a type of PostgreSQL itself",
            "Map a column of a built-in type, for example a generated column of type text.",
        )


def _require_unique(table: Table, names: tuple[str, ...]) -> None:
    unique = [columns for columns in table.unique if columns <= set(names)]
    if unique and all(table.columns[name].not_null for name in names):
        return
    found = ", ".join("(" + ", ".join(sorted(columns)) + ")" for columns in table.unique) or "none"
    raise Refused(
        f"table {table.full_name} has no usable id: ({', '.join(names)}) is not unique and NOT NULL; "
        f"columns with a unique index: {found}; all columns: {', '.join(table.columns)}",
        "Give the columns of a unique index, which are NOT NULL: --map id=COLUMN. Or create such an index.",
    )


def _fields_hint() -> str:
    return "The fields are " + ", ".join(FIELDS) + "."


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; is it {close[0]}?" if close else ""


def is_constant(text: str) -> bool:
    """Whether a part of a mapping is a constant in single quotes, and not a column."""
    return len(text) >= 2 and text[0] == text[-1] == "'"


def function_name(table: str) -> str:
    """The name of the trigger function of a table, given as ``schema.name``."""
    digest = hashlib.sha256(table.encode()).hexdigest()[:8]
    return FUNCTION_PREFIX + re.sub(r"\W+", "_", table, flags=re.ASCII).lower()[:36] + "_" + digest
