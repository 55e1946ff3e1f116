"""trace-export and the export of `run`: options, messages, and a complete export after SIGKILL."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from cli.command import POISON, REMEDY, execute, on_one_server, refused, rows, run, running, seen, value
from telemetry.receiver import Dripping, Receiver, says

pytestmark = on_one_server

GRPC = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
EVENTS = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address)
    select 'iu', 'version_applied', 'update', 'immediate', case when n % 20 = 0 then 'poison' else 'kb/' || n end
      from generate_series(1, {}) n
"""
WORK = "select fn_iu_route_worker_run('iu_outbound_default', 10000)"
SPANS = """select span_id from v_iu_route_attempt
           union all select call_span_id from v_iu_route_attempt where call_span_id is not null
           union all select fn_iu_span_id('dead_letter', id::text) from iu_route_dead_letter"""
IDLE = "select fn_iu_trace_tick('traces') ->> 'status' = 'idle'"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.stop()


def pointing_at(receiver: Receiver, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "1000"} | more


def complete(dsn: str, receiver: Receiver) -> bool:
    """Whether the receiver has a span for each row, and no other spans except those of events and batches."""
    found = {
        key
        for key, span in receiver.spans.items()
        if not span.name.startswith("send ") and all(a.key != "messaging.batch.message_count" for a in span.attributes)
    }
    return found == {row[0] for row in rows(dsn, SPANS)}


@pytest.fixture
def eventful(live):
    """An event that failed and was replayed, and one that is not routed yet."""
    execute(live.dsn, POISON + ";" + EVENTS.format(20) + ";" + WORK + ";" + REMEDY)
    execute(live.dsn, "select fn_iu_route_dead_letter_replay(id) from iu_route_dead_letter")
    execute(live.dsn, EVENTS.format(1))
    return live


LIFE = ["event version_applied", "└ attempt, route", "└ dead letter", "└ attempt 2, route"]


def test_a_life_is_drawn_from_its_rows(eventful):
    """For the event, its trace id, the dead letter or the attempt, trace shows the same tree."""
    event, letter = rows(eventful.dsn, "select event_ref, id from iu_route_dead_letter")[0]
    attempt = value(eventful.dsn, "select max(id) from iu_route_attempt")
    for what in (str(event), event.hex, str(letter), str(attempt)):
        done = run("trace", what, dsn=eventful.dsn)
        assert done.code == 0
        lines = [line for line in done.out.splitlines() if "ms" in line]
        assert all(words in line for words, line in zip(LIFE, lines, strict=True)), done.out
        assert "poisoned" in lines[1]
        assert lines[3].rstrip().endswith("dry_run (dry_run)")
        assert f"trace id {event.hex}" in done.err


def test_a_call_is_drawn_below_its_attempt(eventful):
    """The call of an attempt is a line below it with its target and its failure; a coroutine has no line of its own.

    Fails when: the span of a call is left out, or taken for a dead letter.
    """
    execute(
        eventful.dsn,
        """update iu_route_attempt set target = case attempt_no when 1 then 'POST https://example.com' else 'workflow crm' end
            where status = 'failed' or attempt_no = 2""",
    )
    event = str(value(eventful.dsn, "select event_ref from iu_route_dead_letter"))
    done = run("trace", event, dsn=eventful.dsn, env={"COLUMNS": "200"})
    lines = [line.strip() for line in done.out.splitlines() if "└" in line]
    assert [line.split("  ")[0] for line in lines] == [
        "└ attempt, route iu.version_applied.workflow", "└ call POST https://example.com", "└ dead letter",
        "└ attempt 2, route iu.version_applied.workflow",
    ]  # fmt: skip
    assert "worker_process_error" in lines[1]
    machines = run("trace", event, "--json", dsn=eventful.dsn).out
    assert "example.com" in machines
    assert "workflow crm" in machines


def test_events_without_an_attempt_are_shown_as_not_decided(eventful):
    """An event without attempts is shown; an unknown id is refused with 1, and an invalid one with 2."""
    event = value(eventful.dsn, "select id from event_outbox where id not in (select event_ref from iu_route_attempt)")
    assert "event version_applied" in run("trace", str(event), dsn=eventful.dsn).out
    refused(1, "no event, attempt or dead letter with the id 0", dsn=eventful.dsn)(
        "trace", "00000000-0000-0000-0000-000000000007"
    )
    refused(1, "no event, attempt or dead letter with the id 99999", dsn=eventful.dsn)("trace", "99999")
    refused(2, "nonsense is not an id", dsn=eventful.dsn)("trace", "nonsense")


def test_a_trace_for_machines_is_otlp(eventful, receiver):
    """--json has the same ids, names, parents and times as the export."""
    run("trace-export", "--since", "1h", dsn=eventful.dsn, env=pointing_at(receiver))
    event = value(eventful.dsn, "select event_ref from iu_route_dead_letter")
    told = run("trace", str(event), "--json", dsn=eventful.dsn).json
    spans = told["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert len(spans) == 4
    for span in spans:
        got = receiver.spans[span["spanId"]]
        assert (got.trace_id.hex(), got.parent_span_id.hex()) == (span["traceId"], span["parentSpanId"])
        assert (got.name, got.kind, got.status.code) == (span["name"], span["kind"], span["status"].get("code", 0))
        assert [str(got.start_time_unix_nano), str(got.end_time_unix_nano)] == [
            span["startTimeUnixNano"], span["endTimeUnixNano"],
        ]  # fmt: skip
        assert [a.key for a in got.attributes] == [a["key"] for a in span["attributes"]]


def test_the_page_needs_nothing_else(eventful, tmp_path):
    """The HTML page has every span, has no links and no script, and shows values of events as text."""
    execute(eventful.dsn, "update event_outbox set correlation_id = '<script>alert(1)</script>'")
    event = value(eventful.dsn, "select event_ref from iu_route_dead_letter")
    file = tmp_path / "life.html"
    assert run("trace", str(event), "--html", str(file), dsn=eventful.dsn).code == 0
    text = file.read_text()
    assert text.count("<details") == 4
    assert "&lt;script&gt;" in text
    assert not any(word in text for word in ("<script", "src=", "href=", "url("))


def test_it_ends_when_all_is_exported(live, receiver):
    """The first call begins the export; each later call sends the new spans, and prints their number."""
    execute(live.dsn, EVENTS.format(3) + ";" + WORK)
    env = pointing_at(receiver, OTEL_SERVICE_NAME="billing", OTEL_EXPORTER_OTLP_HEADERS="x-token=a%20b")
    done = run("trace-export", dsn=live.dsn, env=env)
    assert (done.code, done.out.split(" in ")[0]) == (0, "Exported 0 spans")
    execute(live.dsn, EVENTS.format(3) + ";" + WORK)
    assert run("trace-export", "--json", dsn=live.dsn, env=env).json["exported"] == 6
    assert run("trace-export", "--json", dsn=live.dsn, env=env).json["exported"] == 0
    path, headers = receiver.requests[0]
    assert (path, headers["x-token"], headers["content-type"]) == ("/v1/traces", "a b", "application/x-protobuf")
    assert receiver.resource["service.name"] == "billing"


def test_a_period_is_exported_once_more(live, receiver):
    """--since sends all spans of a period under the same ids, also those from before the export began."""
    execute(live.dsn, POISON + ";" + EVENTS.format(40) + ";" + WORK)
    env = pointing_at(receiver, OTEL_EXPORTER_OTLP_COMPRESSION="gzip")
    for since in ("1 hour", time.strftime("%Y-%m-%d"), "2 days"):
        assert run("trace-export", "--since", since, "--json", dsn=live.dsn, env=env).json["exported"] == 82
        assert complete(live.dsn, receiver)
        assert len(receiver.spans) == 82
    assert receiver.requests[0][1]["content-encoding"] == "gzip"
    assert run("trace-export", "--since", "0 s", "--json", dsn=live.dsn, env=env).json["exported"] == 0
    assert value(live.dsn, "select count(*) from iu_trace_cursor") == 0


@pytest.mark.parametrize(
    ("arguments", "env", "code", "words"),
    [
        (("--since", "yesterdayish"), {}, 2, "cannot read 'yesterdayish' as a timestamp or an interval"),
        (("--since", "1h", "--follow"), {}, 2, "exclude each other"),
        ((), {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, 2, "is not an http or https URL"),
        (("--since", "2026"), {}, 2, "cannot read '2026' as a timestamp or an interval"),
        ((), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:s3cret@:4317", **GRPC}, 2, "endpoint …@:4317 is not an http"),
        ((), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"}, 2, "is not an http or https URL"),
        ((), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:99999"}, 2, "is not an http or https URL"),
        ((), {"OTEL_EXPORTER_OTLP_HEADERS": "s3cret"}, 2, "a header has no name"),
        ((), {"OTEL_EXPORTER_OTLP_HEADERS": "bearer s3cret=1"}, 2, "a header has no name, an invalid name"),
        (
            (),
            {"OTEL_EXPORTER_OTLP_HEADERS": "a=b,x-token=s3cret%C3%A9"},
            2,
            "the value of x-token contains characters that are not allowed in a header",
        ),
        (
            (),
            {"OTEL_EXPORTER_OTLP_HEADERS": "x-token=s3cret%0D%0Ax: y", **GRPC},
            2,
            "the value of x-token contains characters",
        ),
        ((), {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, 2, "is not a whole number of milliseconds"),
        ((), {"OTEL_TRACES_EXPORTER": "otpl"}, 2, 'Did you mean "otlp"? Known exporters: otlp, console, none'),
        (
            (),
            {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "x"},
            2,
            "the exporter cannot start: ValueError",
        ),
        (
            (),
            {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "99999"},
            2,
            "the exporter cannot start",
        ),
        ((), {"OTEL_METRICS_EXPORTER": "console", "OTEL_METRIC_EXPORT_INTERVAL": "0"}, 2, "the exporter cannot start"),
        (
            (),
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "x:4318?token=s3cret"},
            2,
            "the OTLP endpoint x:4318 is not an http",
        ),
        ((), {"OTEL_EXPORTER_OTLP_CERTIFICATE": "nowhere"}, 2, "a certificate or key cannot be used: No such file"),
        ((), {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": __file__}, 2, "a certificate or key cannot be used"),
        (
            (),
            {"OTEL_EXPORTER_OTLP_CLIENT_KEY": __file__, "OTEL_EXPORTER_OTLP_ENDPOINT": "https://x", **GRPC},
            2,
            "must be set together for gRPC",
        ),
        ((), {"OTEL_SERVICE_NAME": "\udcff"}, 2, "OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES is not UTF-8"),
        ((), {"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, 2, "must be none or gzip"),
        ((), {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, 2, "must be http/protobuf or grpc"),
    ],
)
def test_what_is_typed_wrong(live, arguments, env, code, words):
    """Each mistake is named, with its exit code; a header is not repeated, because it may be a secret."""
    done = refused(code, words, dsn=live.dsn, env=env)("trace-export", *arguments)
    assert "s3cret" not in done.out + done.err


def test_without_the_package_it_says_so(substrate, receiver):
    """On a database without the package the command names the remedy."""
    refused(2, "iu-listen apply", dsn=substrate.dsn, env=pointing_at(receiver))("trace-export")


def test_beside_a_consumer_that_is_scraped_it_goes_without_metrics(live, receiver):
    """If the port of the metrics is in use, for example by a consumer, the export continues without metrics."""
    execute(live.dsn, EVENTS.format(3) + ";" + WORK)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = pointing_at(receiver, OTEL_METRICS_EXPORTER="prometheus", OTEL_EXPORTER_PROMETHEUS_PORT=port)
        done = run("trace-export", "--since", "1h", dsn=live.dsn, env=env)
    assert done.code == 0
    assert "Metrics are off: OTEL_METRICS_EXPORTER=prometheus: the exporter cannot start" in done.err
    assert complete(live.dsn, receiver)


def test_a_time_without_a_zone_is_utc(live, receiver):
    """--since is in UTC, as all printed times, independent of the time zones of the session and the machine.

    Fails when: the database reads it in the session's time zone.
    """
    execute(live.dsn, EVENTS.format(3) + ";" + WORK)
    database = value(live.dsn, "select current_database()")
    execute(live.dsn, f"alter database {database} set timezone = 'Asia/Tokyo'")
    soon = (datetime.now(UTC) + timedelta(hours=1)).replace(tzinfo=None).isoformat(timespec="seconds")
    for since, spans in ((soon, 0), (soon.replace("T", " "), 0), ("1 hour", 6)):
        env = pointing_at(receiver, TZ="Asia/Tokyo")
        done = run("trace-export", "--since", since, "--json", dsn=live.dsn, env=env)
        assert done.json["exported"] == spans


@pytest.mark.parametrize("command", ["trace-export", "run"])
@pytest.mark.parametrize(
    ("protocol", "name"),
    # In gRPC, a header name that ends with -bin needs bytes; the library's error text contains the value.
    [("http/protobuf", "x-token"), ("grpc", "x-token"), ("grpc", "token-bin")],
)
def test_secrets_are_never_logged(live, command, protocol, name):
    """A password in an endpoint, and a token, appear in no output, over HTTP and gRPC, in any failure, also not by the
    SDK.

    Fails when: the text of a library's error, or the SDK's log lines with their arguments, are printed.
    """
    execute(live.dsn, "select fn_iu_trace_register('traces');" + EVENTS.format(3) + ";" + WORK)
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:s3cret@127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "20000",
        "OTEL_EXPORTER_OTLP_HEADERS": f"{name}=s3cret", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "200", "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_RESOURCE_ATTRIBUTES": "s3cret",
    }  # fmt: skip
    with running(command, dsn=live.dsn, env=env) as going:
        going.until_it_says("The export is delayed" if command == "trace-export" else "trace export delayed")
        going.until_it_says("opentelemetry")
        going.end(signal.SIGINT)
        assert "s3cret" not in going.said
        assert "Traceback" not in going.said


@pytest.mark.parametrize(
    ("scheme", "says", "protocol"),
    [
        ("http", b"HTTP/1.1 200 OK\r\nx: ", "http/protobuf"), ("http", b"", "http/protobuf"), ("http", b"", "grpc"),
        ("https", b"", "http/protobuf"), ("http", None, "http/protobuf"),
    ],
    ids=["drips", "says nothing", "says nothing over grpc", "leaves a handshake", "is gone"],
)  # fmt: skip
@pytest.mark.parametrize("command", [("run",), ("trace-export", "--follow")])
def test_sigterm_ends_it_whatever_the_collector_does(live, command, scheme, says, protocol):
    """If the collector never answers traces and metrics, the process still ends within seconds.

    Fails when: the shutdown of the SDK, or a sending thread, is waited for.
    """
    execute(live.dsn, "select fn_iu_trace_register('traces');" + EVENTS.format(3) + ";" + WORK)
    there = Dripping(says or b"", b"x" if says else b"", 0.05)
    if says is None:
        there.stop()
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": there.endpoint.replace("http", scheme), "OTEL_EXPORTER_OTLP_TIMEOUT": "60000",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
    }  # fmt: skip
    with running(*command, dsn=live.dsn, env=env) as going:
        seen(live.dsn, "select exists (select from iu_trace_cursor where tick is not null)")
        assert going.end(signal.SIGTERM, timeout=8) == (143 if command != ("run",) else 0)
    there.stop()


def test_an_export_reports_and_awaits_a_collector_that_is_down(live, receiver):
    """While the collector is unavailable the command says so, without secrets, and continues when it is back."""
    run("trace-export", dsn=live.dsn, env=pointing_at(receiver))
    execute(live.dsn, EVENTS.format(3) + ";" + WORK)
    receiver.stop()
    env = pointing_at(receiver, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20s3cret")
    with running("trace-export", dsn=live.dsn, env=env) as command:
        command.until_it_says(
            "The export is delayed, and no span is lost: the collector cannot be reached: Connection refused"
        )
        receiver.start()
        assert command.ended(30) == 0
        assert "Exported 6 spans" in command.said
        assert "s3cret" not in command.said
    assert complete(live.dsn, receiver)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_may_be_ended_at_any_moment(live, receiver, number, code):
    """A signal ends the export at once, also while it waits for the collector; the next call continues."""
    run("trace-export", dsn=live.dsn, env=pointing_at(receiver))
    execute(live.dsn, EVENTS.format(3) + ";" + WORK)
    receiver.behaviour = says(503)
    with running("trace-export", "--follow", dsn=live.dsn, env=pointing_at(receiver)) as command:
        command.until_it_says("503")
        assert command.end(number) == code
    receiver.behaviour = None
    assert run("trace-export", "--json", dsn=live.dsn, env=pointing_at(receiver)).json["exported"] == 6


def test_nothing_is_missing_after_kill_9(live, receiver):
    """A consumer that exports is killed by SIGKILL ten times: at the end every row is a span.

    Fails when: the trace cursor moves before the collector has accepted a page.
    """
    env = pointing_at(receiver, OTEL_TRACES_EXPORTER="otlp", IU_LISTEN_BATCH_LIMIT="50", IU_LISTEN_SESSION_TIMEOUT="6")
    run("trace-export", dsn=live.dsn, env=env)
    execute(live.dsn, POISON)
    for round_ in range(10):
        execute(live.dsn, EVENTS.format(300))
        with running("run", dsn=live.dsn, env=env) as consumer:
            before = len(receiver.spans)
            deadline = time.monotonic() + 30
            while len(receiver.spans) < before + 50 + 30 * round_:
                assert time.monotonic() < deadline, consumer.said
                time.sleep(0.01)
            consumer.process.kill()
    with running("run", dsn=live.dsn, env=env) as consumer:
        consumer.until_it_says("lease taken")
        seen(live.dsn, "select count(*) = 3000 from iu_route_attempt", timeout=30)
        seen(live.dsn, IDLE, timeout=30)
        assert consumer.end() == 0
    assert complete(live.dsn, receiver)
    assert len(receiver.named("dead_letter ")) == 150


def test_attempts_link_to_their_batch(live, receiver):
    """A consumer that exports sends a span of each batch, and the attempts of that batch link to it.

    Fails when: the live span of the batch has other ids than those that are stored with its attempts.
    """
    env = pointing_at(receiver, OTEL_TRACES_EXPORTER="otlp", OTEL_BSP_SCHEDULE_DELAY="100")
    with running("run", "--log-format", "json", dsn=live.dsn, env=env) as consumer:
        consumer.until_it_says('"listening"')
        seen(live.dsn, "select count(*) = 1 from iu_trace_cursor")
        execute(live.dsn, EVENTS.format(3))
        deadline = time.monotonic() + 20
        while len(receiver.spans) < 7:
            assert time.monotonic() < deadline, (len(receiver.spans), consumer.said)
            time.sleep(0.01)
        assert consumer.end() == 0
    (batch,) = [
        s
        for s in receiver.named("process ").values()
        if any(a.key == "messaging.batch.message_count" for a in s.attributes)
    ]
    attempts = [s for s in receiver.named("process ").values() if s is not batch]
    assert len(attempts) == 3
    for attempt in attempts:
        assert (batch.trace_id, batch.span_id) in {(link.trace_id, link.span_id) for link in attempt.links}


@pytest.mark.parametrize("how", ["a process of its own", "a sampler"])
def test_where_batches_are_no_spans_attempts_link_to_none(live, receiver, how):
    """If a consumer exports no batch spans, or samples live spans, every link still leads to an exported span.

    Fails when: an attempt links to a batch whose span is not exported.
    """
    env = pointing_at(
        receiver, OTEL_TRACES_EXPORTER="otlp", OTEL_TRACES_SAMPLER="always_off", OTEL_BSP_SCHEDULE_DELAY="100"
    )
    if how == "a sampler":
        with running("run", "--log-format", "json", dsn=live.dsn, env=env) as consumer:
            consumer.until_it_says('"listening"')
            seen(live.dsn, "select count(*) = 1 from iu_trace_cursor")
            execute(live.dsn, EVENTS.format(3))
            seen(live.dsn, "select count(*) = 3 from iu_route_attempt")
            seen(live.dsn, IDLE)
            assert consumer.end() == 0
    else:
        execute(live.dsn, EVENTS.format(3) + ";" + WORK)
        assert run("trace-export", "--since", "1h", dsn=live.dsn, env=pointing_at(receiver)).code == 0
    assert len(receiver.named("process ")) == 3
    there = {(span.trace_id, span.span_id) for span in receiver.spans.values()}
    links = [(link.trace_id, link.span_id) for span in receiver.spans.values() for link in span.links]
    assert len(links) == 3
    assert set(links) <= there


def test_an_export_is_ended_for_good(live, receiver):
    """--end removes the trace cursor, so that retention no longer waits for it; it is refused while the export runs."""
    assert run("trace-export", "--end", dsn=live.dsn).out == "There is no trace export.\n"
    with running("trace-export", "--follow", dsn=live.dsn, env=pointing_at(receiver)) as export:
        seen(live.dsn, "select count(*) = 1 from iu_trace_cursor")
        execute(live.dsn, EVENTS.format(3) + ";" + WORK)
        seen(live.dsn, "select exported = 6 from iu_trace_cursor")
        refused(1, "the trace export is running", dsn=live.dsn)("trace-export", "--end")
        export.end()
    assert run("trace-export", "--end", "--json", dsn=live.dsn).json == {"ended": True, "exported": 6}
    assert value(live.dsn, "select count(*) from iu_trace_cursor") == 0


def test_an_export_that_is_late_is_seen(live, receiver):
    """status and doctor show the spans that wait for the export, and warn if the export is late."""
    findings = {f["what"]: f for f in run("doctor", "--json", dsn=live.dsn).json["findings"]}
    assert (findings["traces"]["level"], findings["traces"]["found"]) == ("ok", "not exported")
    run("trace-export", dsn=live.dsn, env=pointing_at(receiver))
    execute(live.dsn, EVENTS.format(3) + ";" + WORK)
    execute(live.dsn, "update iu_route_attempt set created_at = now() - interval '2 hours'")
    (export,) = run("status", "--json", dsn=live.dsn).json["exports"]
    assert (export["waiting"], export["exported"], export["refusal"]) == (3, 0, None)
    assert "traces" in run("status", dsn=live.dsn).out
    finding = {f["what"]: f for f in run("doctor", "--json", dsn=live.dsn).json["findings"]}["traces"]
    assert (finding["level"], finding["found"][:45]) == ("warn", "3 attempts are not exported, the oldest for 2")
    run("trace-export", dsn=live.dsn, env=pointing_at(receiver))
    finding = {f["what"]: f for f in run("doctor", "--json", dsn=live.dsn).json["findings"]}["traces"]
    assert (finding["level"], finding["found"]) == ("ok", "6 spans are exported")


def test_a_consumer_without_the_variable_exports_no_traces(live, receiver):
    """A consumer without the export has no session for it, and creates no cursor."""
    with running("run", "--log-format", "json", dsn=live.dsn, env=pointing_at(receiver)) as consumer:
        consumer.until_it_says('"listening"')
        execute(live.dsn, EVENTS.format(3))
        seen(live.dsn, "select count(*) = 3 from iu_route_attempt")
        names = rows(live.dsn, "select application_name from pg_stat_activity where datname = current_database()")
        assert not any("traces" in name[0] for name in names)
        assert consumer.end() == 0
        assert "trace" not in consumer.said
    assert receiver.requests == []
    assert value(live.dsn, "select count(*) from iu_trace_cursor") == 0
