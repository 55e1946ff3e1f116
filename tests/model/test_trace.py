"""Trace ids and OTLP: Python and SQL agree, and the protocol's own library can read the encoded bytes."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from iu_listen.model import called, spans
from iu_listen.telemetry.otlp.encoding import SCOPE_NAME, encode_spans, request, shortened
from support import connected

HEX = "0123456789abcdef"
VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
#: Contexts as they may arrive: valid, nearly valid, and random text.
CONTEXTS = st.one_of(
    st.none(),
    st.builds(
        "{}-{}-{}-{}".format,
        st.sampled_from(["00", "00", "00", "01", "ff", "0"]),
        st.one_of(st.just("0" * 32), st.text(HEX, min_size=32, max_size=32), st.text(HEX + "G", max_size=33)),
        st.one_of(st.just("0" * 16), st.text(HEX, min_size=16, max_size=16)),
        st.sampled_from(["00", "01", "03", "0", "01-x", "01\n"]),
    ),
    st.sampled_from([VALID, VALID.upper(), VALID + " ", " " + VALID, VALID * 1000, ""]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
#: From empty to longer than a length of two bytes can express.
LONG = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), TEXT.map((500 * "ü").__add__),
                 TEXT.map((20_000 * "x").__add__))  # fmt: skip


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
def test_python_and_sql_agree(applied):
    """Python and SQL compute the same trace id and span id for random rows.

    Fails when: one of the two accepts another context as valid, hashes other data, or replaces zeros differently.
    """

    async def compare() -> None:
        ask = """select fn_iu_trace_context(c.tp), fn_iu_trace_id(c.event, c.tp), fn_iu_span_id(c.what, c.key)
                   from unnest($1::text[], $2::uuid[], $3::text[], $4::text[]) c(tp, event, what, key)"""
        async with connected(applied.dsn) as connection:
            rows = await connection.fetch(ask, *map(list, zip(*cases, strict=True)))
        for (tp, event, what, key), found in zip(cases, rows, strict=True):
            assert tuple(found) == (spans.context(tp), spans.trace_id(event, tp), spans.span_id(what, key)), tp

    cases: list[tuple[str | None, UUID, str, str]] = [
        (None, UUID(int=0), "event", ""),
        (VALID, UUID(int=1), "attempt", "ü 1"),
    ]

    @settings(max_examples=2000, suppress_health_check=[HealthCheck.too_slow], deadline=None, derandomize=True)
    @given(CONTEXTS, st.uuids(), st.sampled_from(["event", "attempt", "call", "dead_letter"]), TEXT)
    def collect(tp: str | None, event: UUID, what: str, key: str) -> None:
        cases.append((tp, event, what, key))

    collect()
    assert sum(spans.context(tp) is not None for tp, *_ in cases) > 50
    asyncio.run(compare())


EVENT = UUID("c3ac036f-eb71-4f36-bf3f-60026b7d5de0")


def test_the_starting_context_is_the_same_in_every_hop():
    """The starting context is that of the producer, or of the event's own span; never that of an attempt or a call.

    Fails when: the CloudEvents attribute is given the context of the call.
    """
    own = f"00-{EVENT.hex}-{spans.span_id('event', str(EVENT))}-01"
    assert [spans.starting_context(EVENT, given) for given in (VALID, None, "nonsense")] == [VALID, own, own]
    called = [
        spans.target_context(EVENT, VALID, what, "key", number) for what in ("attempt", "call") for number in (1, 2)
    ]
    assert [one[:36] for one in called] == [VALID[:36]] * 4
    assert len({VALID, *called}) == 5


@pytest.mark.parametrize(
    ("reference", "options", "text", "name", "attributes"),
    [
        ("https://u:s3cret@h.example/s3cret?k=s3cret", {}, "POST https://h.example", "POST",
         {"server.address": "h.example", "server.port": 443, "url.full": "https://h.example/REDACTED"}),
        ("http://[::1]:8080/x", {"method": "PUT"}, "PUT http://[::1]:8080", "PUT",
         {"server.address": "::1", "server.port": 8080, "http.request.method": "PUT"}),
        ("kafka://a:1,b/orders", {}, "kafka://a:1,b/orders", "send orders", {"messaging.system": "kafka"}),
        ("tls://a/o.{type}", {}, "tls://a/o.{type}", "send o.{type}",
         {"messaging.system": "nats", "server.port": 4222, "messaging.destination.template": "o.{type}"}),
        ("redis://a/1?stream=s", {}, "redis://a/s", "send s", {"server.port": 6379}),
        ("valkeys://a/1", {"stream": "t"}, "valkeys://a/t", "send t", {"messaging.system": "redis"}),
        ("pigeon://loft/s3cret", {}, "pigeon://loft", "deliver", {"server.address": "loft"}),
        ("http://[::1", {}, "", None, {}),
    ],
)  # fmt: skip
def test_what_is_called_is_named_without_secrets(reference, options, text, name, attributes):
    """The stored name of a target has no user, URL path or query; the span has the attributes of the conventions.

    Fails when: a part of an address is kept that may hold a secret.
    """
    assert called.called("external_endpoint", reference, options) == text
    if name is not None:
        found = called.callee(text)
        assert found.name == name
        assert attributes.items() <= found.attributes.items()
        assert ("server.address" in found.attributes) == ("," not in text)
        assert "s3cret" not in str(found)


IDS = st.binary(min_size=16, max_size=16).map(bytes.hex)
SPANS = st.builds(
    spans.Span,
    trace_id=IDS,
    span_id=IDS.map(lambda i: i[:16]),
    parent_id=st.one_of(st.just(""), IDS.map(lambda i: i[:16])),
    name=TEXT,
    kind=st.sampled_from(spans.SpanKind),
    start=st.integers(0, 2**64 - 1),
    end=st.integers(0, 2**64 - 1),
    common=st.builds(
        spans.Common, st.dictionaries(TEXT.map("c".__add__), st.one_of(LONG, st.integers(-(2**63), 2**63 - 1)))
    ),
    own=st.dictionaries(TEXT.map("o".__add__), st.one_of(st.none(), LONG)),
    error=st.one_of(st.none(), TEXT),
    links=st.lists(st.builds(spans.SpanLink, IDS, IDS.map(lambda i: i[:16])), max_size=3).map(tuple),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(SPANS, max_size=5))
def test_what_we_write_is_what_protobuf_reads(spans):
    """The protocol's own library reads every field with its value, and finds no unknown field."""
    body = request(encode_spans(spans), {"service.name": "x" * 5000, "service.instance.id": 7, "other": 1.5})
    found = ExportTraceServiceRequest.FromString(body)

    assert not UnknownFieldSet(found)
    (resource,) = found.resource_spans
    assert [(a.key, a.value.WhichOneof("value")) for a in resource.resource.attributes] == [
        ("service.name", "string_value"), ("service.instance.id", "int_value"), ("other", "string_value"),
    ]  # fmt: skip
    (scope,) = resource.scope_spans
    assert scope.scope.name == SCOPE_NAME
    for span, read in zip(spans, scope.spans, strict=True):
        assert (read.trace_id.hex(), read.span_id.hex(), read.parent_span_id.hex()) == (
            span.trace_id,
            span.span_id,
            span.parent_id,
        )
        assert (read.name, read.kind) == (span.name, span.kind)
        assert (read.start_time_unix_nano, read.end_time_unix_nano) == (span.start, span.end)
        values = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in read.attributes}
        assert values == {k: shortened(v) if isinstance(v, str) else v for k, v in span.attributes.items()}
        assert [(link.trace_id.hex(), link.span_id.hex()) for link in read.links] == list(span.links)
        assert (read.status.code, read.status.message) == (
            (2, shortened(span.error)) if span.error is not None else (0, "")
        )
