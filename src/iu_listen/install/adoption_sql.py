"""The SQL of the trigger that copies the rows of an adopted table to event_outbox.

The trigger function is generated for the columns of the table: it names them directly, so it is readable, and it costs
the application less than a general function would.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final

from iu_listen.model.adoption import TRIGGER, Adoption, Column, Table, function_name, is_constant
from iu_listen.postgres.sqlfiles import script

#: A W3C trace context inside of another text, for example in a JSON document or a list of properties.
_TRACEPARENT: Final = "00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"


def trigger_sql(adoption: Adoption, table: Table) -> str:
    """The statements that create the trigger of an adopted table, and its function. Run them in one transaction.

    The function has the rights of its owner, because the application has none on event_outbox. It registers a type that
    it does not know, so that no transaction of the application fails; it skips a type that was made inactive. The event
    id is that of the row if it is a UUID, else derived from table and id; so a row that is inserted twice is one event.
    """
    fields = adoption.fields
    row_id, address = _joined(fields["id"]), literal(adoption.table + "/")
    is_uuid = len(fields["id"]) == 1 and table.columns[fields["id"][0]].type == "uuid"
    values = {
        "id": _column(fields["id"][0]) if is_uuid else f"md5({address} || {row_id})::uuid",
        "event_domain": literal(adoption.domain),
        "event_type": "v_type",
        "event_stream": "v_stream",
        "delivery_lane": "v_lane",
        "event_severity": "v_severity",
        "event_subject_table": _joined(fields.get("subject-type", ())),
        "event_subject_ref": _joined(fields.get("subject", ())),
        "canonical_address": f"{address} || {row_id}",
        "source_system": literal(adoption.table),
        "safe_payload": "v_payload",
        "occurred_at": _time(table, fields),
        "traceparent": _trace(fields),
    }
    parts = {
        "function": function_name(adoption.table),
        "type": _joined(fields["type"]),
        "domain": literal(adoption.domain),
        "payload": _payload(table.columns[fields["payload"][0]]),
        "columns": ", ".join(values),
        "values": (",\n" + " " * 12).join(values.values()),
    }
    # The names of columns are inside the dollar quotes, so none of them may contain the quote.
    quote = next(q for q in (f"$iu_{n}$" for n in itertools.count()) if q not in "".join(parts.values()))
    return (
        script("adopt")
        .format(
            quote=quote,
            comment=literal(adoption.comment()),
            trigger=TRIGGER,
            table=f"{identifier(table.schema)}.{identifier(table.name)}",
            **parts,
        )
        .strip()
    )


def removal_sql(adopted: str, table: str | None) -> str:
    """The statements that remove the trigger of an adopted table, and its function.

    Args:
        adopted: Schema and name of the table when it was adopted.
        table: The present name of the table as SQL; None: it has no trigger any more.
    """
    text = script("adopt_remove").format(function=function_name(adopted), trigger=TRIGGER, table=table)
    return text.strip() if table else text.partition("\n")[2].strip()


def _payload(column: Column) -> str:
    value = _column(column.name)
    if column.type == "jsonb":
        return script("adopt_jsonb").format(column=value).rstrip()
    if column.type == "bytea":
        json, other = f"convert_from({value}, 'UTF8')", f"jsonb_build_object('base64', encode({value}, 'base64'))"
    else:
        json, other = f"{value}::text", f"jsonb_build_object('text', {value}::text)"
    return script("adopt_payload").format(json=json, other=other).rstrip()


def _time(table: Table, fields: Mapping[str, tuple[str, ...]]) -> str:
    if "occurred-at" not in fields:
        return "now()"
    column = table.columns[fields["occurred-at"][0]]
    cast = "" if column.type == "timestamp with time zone" else "::timestamptz"
    return f"coalesce({_column(column.name)}{cast}, now())"


def _trace(fields: Mapping[str, tuple[str, ...]]) -> str:
    own = "nullif(current_setting('iu.traceparent', true), '')"
    if "traceparent" not in fields:
        return own
    return f"coalesce(substring({_joined(fields['traceparent'])} from '{_TRACEPARENT}'), {own})"


def _joined(parts: tuple[str, ...]) -> str:
    """The SQL of a text: one column or constant, or several, joined with dots; null if there is none."""
    texts = [literal(p[1:-1]) if is_constant(p) else f"{_column(p)}::text" for p in parts]
    if len(texts) < 2:
        return texts[0] if texts else "null"
    return f"concat_ws('.', {', '.join(texts)})"


def _column(name: str) -> str:
    return f"new.{identifier(name)}"


def identifier(name: str) -> str:
    """A name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL, whatever standard_conforming_strings is."""
    quoted = "'" + text.replace("'", "''").replace("\\", "\\\\") + "'"
    return f"E{quoted}" if "\\" in text else quoted
