"""Spans as OTLP: protobuf, written out by hand, and JSON.

The SDK's encoder takes 30 µs a span, and protobuf objects half of that; this takes a few, because most of a span is
what the span before it had, too. A test holds it against opentelemetry-proto. The message and its field numbers:
https://github.com/open-telemetry/opentelemetry-proto/blob/v1.7.0/opentelemetry/proto/trace/v1/trace.proto
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import pack
from typing import Any, Final

from iu_listen import __version__
from iu_listen.model.trace import Link, Span

#: Name of our instrumentation scope.
SCOPE: Final = "iu_listen"
#: The conventions that names and attributes follow.
SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
#: Attributes whose values are those of other spans, too: worth remembering.
_FEW_VALUES: Final = frozenset({
    "messaging.system", "messaging.operation.name", "messaging.operation.type", "messaging.destination.name",
    "messaging.consumer.group.name", "error.type", "iu.event.domain", "iu.event.type", "iu.route.code", "iu.route.kind",
    "iu.attempt.status", "iu.attempt.decision", "iu.attempt.number",
})  # fmt: skip


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SHORT: Final = [_varint(n) for n in range(4096)]


def _field(tag: bytes, content: bytes) -> bytes:
    """A length-delimited field; ``tag`` is field number * 8 + 2."""
    size = len(content)
    return tag + (_SHORT[size] if size < 4096 else _varint(size)) + content


def _key_value(key: str, value: str | int) -> bytes:
    any_value = _field(b"\x0a", value.encode()) if isinstance(value, str) else b"\x18" + _varint(value % 2**64)
    return _field(b"\x0a", key.encode()) + _field(b"\x12", any_value)


@lru_cache(maxsize=4096)
def _attribute(key: str, value: str | int) -> bytes:
    return _field(b"\x4a", _key_value(key, value))


def _link(link: Link) -> bytes:
    return _field(b"\x6a", b"\x0a\x10" + bytes.fromhex(link.trace_id) + b"\x12\x08" + bytes.fromhex(link.span_id))


def _span(span: Span) -> bytes:
    parts = [b"\x0a\x10", bytes.fromhex(span.trace_id), b"\x12\x08", bytes.fromhex(span.span_id)]
    if span.parent_id:
        parts += b"\x22\x08", bytes.fromhex(span.parent_id)
    parts += (
        _field(b"\x2a", span.name.encode()), b"\x30", _SHORT[span.kind], b"\x39", pack("<Q", span.start),
        b"\x41", pack("<Q", span.end),
    )  # fmt: skip
    for key, value in span.attributes.items():
        if value is not None:
            parts.append(_attribute(key, value) if key in _FEW_VALUES else _field(b"\x4a", _key_value(key, value)))
    parts += map(_link, span.links)
    if span.error is not None:
        parts.append(_field(b"\x7a", _field(b"\x12", span.error.encode()) + b"\x18\x02"))
    return b"".join(parts)


def encode(spans: Iterable[Span], resource: Mapping[str, Any]) -> bytes:
    """An ExportTraceServiceRequest.

    Args:
        spans: What to export.
        resource: Who exports: attributes, text or whole numbers; others as text.
    """
    scope = _field(b"\x0a", SCOPE.encode()) + _field(b"\x12", __version__.encode())
    scope_spans = b"".join([
        _field(b"\x0a", scope), *(_field(b"\x12", _span(s)) for s in spans), _field(b"\x1a", SCHEMA.encode())
    ])  # fmt: skip
    who = b"".join(_field(b"\x0a", _key_value(k, v if type(v) in (str, int) else str(v))) for k, v in resource.items())
    return _field(b"\x0a", _field(b"\x0a", who) + _field(b"\x12", scope_spans))


def as_json(spans: Iterable[Span], resource: Mapping[str, Any]) -> dict[str, Any]:
    """The same as OTLP/JSON: ids in hexadecimal, 64-bit numbers as text (opentelemetry.io/docs/specs/otlp, JSON)."""
    return {
        "resourceSpans": [{
            "resource": {"attributes": _json_attributes({k: str(v) for k, v in resource.items()})},
            "scopeSpans": [{
                "scope": {"name": SCOPE, "version": __version__},
                "spans": [_json_span(span) for span in spans],
                "schemaUrl": SCHEMA,
            }],
        }],
    }  # fmt: skip


def _json_attributes(attributes: Mapping[str, str | int | None]) -> list[dict[str, Any]]:
    return [
        {"key": k, "value": {"stringValue": v} if isinstance(v, str) else {"intValue": str(v)}}
        for k, v in attributes.items()
        if v is not None
    ]


def _json_span(span: Span) -> dict[str, Any]:
    return {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_id,
        "name": span.name,
        "kind": int(span.kind),
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": _json_attributes(span.attributes),
        "links": [{"traceId": link.trace_id, "spanId": link.span_id} for link in span.links],
        "status": {"code": 2, "message": span.error} if span.error is not None else {},
    }
