"""The HTTP target: the requests that it sends, its reading of answers, and the options of routes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook, WebhookVerificationError

from iu_listen.model.delivery import Failed, Reject, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.retry_after import parse_retry_after
from iu_listen.model.secrets import Secrets
from iu_listen.targets import Targets, http
from iu_listen.targets.http import pool as http_pool
from iu_listen.targets.http.options import HTTP_OPTIONS
from iu_listen.targets.http.pool import HttpPool
from iu_listen.targets.http.target import STATUS_OUTCOMES
from targets.http_receivers import KEYS, SECRETS, delivery, raw, response

pytestmark = pytest.mark.asyncio

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ODD = 'ü ☃ %41 "x"\r\nX-Evil: 1'


async def caught(target, sent):
    """The exception that the delivery raises; None if it succeeds."""
    try:
        await target.deliver(sent)
    except (Reject, Unavailable, Failed) as error:
        return error
    finally:
        await target.aclose()
    return None


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
@pytest.mark.parametrize("mode", ["structured", "binary"])
async def test_an_event_arrives_as_a_cloudevent(receiver, mode, http2):
    """The receiver gets a CloudEvent with every attribute unchanged, unusual characters included, and the headers.
    Fails when: an attribute is left out, or a value is not percent-encoded in a header.
    """
    await receiver.ask("/seen")
    sent = delivery(source="crm/ü", subject=ODD, correlation_id="c 1", traceparent=TRACEPARENT,
                    payload='{"price": 1.10, "name": "Zoë"}')  # fmt: skip
    assert await caught(receiver.target(mode=mode, http2=http2, method="PUT"), sent) is None

    (got,) = await receiver.ask("/seen")
    event = from_http_event(HTTPMessage(headers=got["headers"], body=got["body"].encode()))
    assert (got["method"], got["path"], got["version"]) == ("PUT", "/hook", "2" if http2 else "1.1")
    assert got["headers"]["idempotency-key"] == sent.idempotency_key
    # The header has the producer's trace and the span of this call; the extension has the producer's value.
    assert got["headers"]["traceparent"] == sent.traceparent
    assert sent.traceparent[:36] == TRACEPARENT[:36]
    assert sent.traceparent != TRACEPARENT
    assert "x-evil" not in got["headers"]
    assert event.get_attributes() == {
        "specversion": "1.0", "id": str(sent.event.id), "source": "crm/%C3%BC", "type": "iu.version_applied",
        "datacontenttype": "application/json", "subject": ODD, "time": datetime(2026, 11, 25, 17, tzinfo=UTC),
        "traceparent": TRACEPARENT, "correlationid": "c 1", "domain": "iu", "stream": "iu",
    }  # fmt: skip
    assert event.get_data() == {"price": 1.1, "name": "Zoë"}
    # As the database wrote it: numbers are not parsed and serialized again.
    assert '{"price": 1.10, "name": "Zoë"}' in got["body"]


async def test_both_keys_verify_while_they_are_exchanged(receiver):
    """A body that is signed with two keys can be verified by each of them only; its id has no dot and is stable.
    Fails when: only the first key signs, or the body is changed after it was signed.
    """
    await receiver.ask("/seen")
    target = receiver.target(secrets=["env:NEW", "env:OLD"])
    for _ in range(2):
        await target.deliver(delivery("outbound:a.b:7", payload='{"ü": 1}'))
    await target.aclose()

    one, two = await receiver.ask("/seen")
    for key in ("NEW", "OLD"):
        assert Webhook(KEYS[key]).verify(one["body"], one["headers"])["data"] == {"ü": 1}
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 32).verify(one["body"], one["headers"])
    with pytest.raises(WebhookVerificationError):
        Webhook(KEYS["NEW"]).verify(one["body"] + " ", one["headers"])
    assert one["headers"]["webhook-id"] == two["headers"]["webhook-id"] == "outbound:a%2Eb:7"
    assert one["headers"]["idempotency-key"] == "outbound:a.b:7"


async def test_fixed_headers_and_secrets_of_them_are_sent(receiver):
    """Headers of the route arrive, a secret value behind its prefix; without signing keys nothing is signed.
    Fails when: the option headers is not applied to the request.
    """
    await receiver.ask("/seen")
    headers = {"X-Team": "crm", "Authorization": {"secret": "env:TOKEN", "prefix": "Bearer "}}
    assert await caught(receiver.target(headers=headers), delivery()) is None

    (got,) = await receiver.ask("/seen")
    assert got["headers"]["x-team"] == "crm"
    assert got["headers"]["authorization"] == f"Bearer {KEYS['TOKEN']}"
    assert not any(name.startswith("webhook-") for name in got["headers"])


NOW = 1_800_000_000
DATE = format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)
OUTCOMES = [
    (200, {}, None, "", None),
    (202, {}, None, "", None),
    (204, {}, None, "", None),
    (300, {}, Reject, "redirect", None),
    (304, {}, Reject, "redirect", None),
    (400, {}, Reject, "http_400", None),
    (401, {"retry_after": "7"}, Unavailable, "http_401", 7),
    (403, {}, Unavailable, "http_403", None),
    (404, {}, Unavailable, "http_404", None),
    (405, {}, Reject, "http_405", None),
    (408, {}, Failed, "http_408", None),
    (410, {}, Reject, "http_410", None),
    (422, {}, Reject, "http_422", None),
    (425, {}, Failed, "http_425", None),
    (429, {}, Unavailable, "http_429", None),
    (429, {"retry_after": "7"}, Unavailable, "http_429", 7),
    (500, {}, Failed, "http_500", None),
    (501, {}, Failed, "http_501", None),
    (502, {}, Unavailable, "http_502", None),
    (503, {}, Unavailable, "http_503", None),
    (503, {"retry_after": DATE}, Unavailable, "http_503", 90),
    (503, {"retry_after": "999999"}, Unavailable, "http_503", 3600),
    (503, {"retry_after": "soon"}, Unavailable, "http_503", None),
    (504, {}, Failed, "http_504", None),
    (999, {}, Failed, "http_999", None),
]


@pytest.mark.parametrize(("status", "headers", "kind", "code", "wait"), OUTCOMES)
async def test_what_an_answer_means(status, headers, kind, code, wait):
    """Each status has the outcome that the table of docs/how-to/http.md states.
    Fails when: a row of OUTCOMES is taken out of the target.
    """
    body = b"" if status in {204, 304} else b"because"
    async with raw(response(status, body, **headers)) as server:
        target = server.target()
        target._clock = lambda: NOW
        error = await caught(target, delivery())
    assert type(error) is (kind or type(None))
    if error:
        assert (error.code, error.retry_after) == (code, wait)
        assert error.reason == (f"HTTP {status}: because" if body else f"HTTP {status}")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("120", 120), ("9" * 5000, 3600), ("-1", None), ("1.5", None), ("", None), ("٣", None), ("1e3", None),
     (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 0),
     (format_datetime(datetime.fromtimestamp(NOW + 9999, UTC), usegmt=True), 3600), ("Wed, 99 Nov 2026 17:00:00 GMT", None),
     ("Wed, 25 Nov 99999 17:00:00 GMT", None), ("\x00", None)],
)  # fmt: skip
async def test_how_long_to_wait(text, seconds):
    """Retry-After is read as seconds or as a date, capped at an hour; any other value is ignored.
    Fails when: the cap is taken out, or an invalid date raises an error.
    """
    assert parse_retry_after(text, NOW) == seconds


@pytest.mark.parametrize(
    ("address", "options", "says"),
    [
        ("https://a.example/", {"mod": "binary"}, "no option 'mod'"),
        ("https://a.example/", {"mode": "xml"}, "mode of an http target must be structured or binary"),
        ("https://a.example/", {"method": "GET"}, "method of an http target must be POST or PUT"),
        ("https://a.example/", {"http2": 1}, "http2 of an http target must be true or false"),
        ("https://a.example/", {"max_response": 0}, "max_response of an http target must be"),
        ("https://a.example/", {"max_response": True}, "max_response of an http target must be"),
        ("https://a.example/", {"secrets": "env:NEW"}, "secrets of an http target must be a list"),
        ("https://a.example/", {"secrets": ["whsec_canary"]}, "invalid reference to a secret"),
        ("https://a.example/", {"secrets": ["env:NOTHING"]}, "NOTHING is not set"),
        ("https://a.example/", {"secrets": ["env:TOKEN"]}, "env:TOKEN is not a key for signatures"),
        ("https://a.example/", {"headers": ["a"]}, "headers of an http target must be"),
        (
            "https://a.example/",
            {"headers": {"a": {"secret": "env:TOKEN", "x": 1}}},
            "headers of an http target must be",
        ),
        ("https://a.example/", {"headers": {"Authorization": "Bearer canary"}}, "contains a secret"),
        ("https://a.example/", {"headers": {"Host": "b"}}, "must not contain 'host'"),
        ("https://a.example/", {"headers": {"Transfer-Encoding": "chunked"}}, "must not contain"),
        ("https://a.example/", {"headers": {"webhook-id": "1"}}, "must not contain"),
        ("https://a.example/", {"headers": {"a b": "1"}}, "must not contain 'a b'"),
        ("https://a.example/", {"headers": {"a": "1\r\nb: canary"}}, "value of the header a"),
        ("https://a.example/", {"headers": {"a": {"secret": "env:LINES"}}}, "value of the header a"),
        ("https://a.example/", {"ca": "/nowhere.pem"}, "option ca cannot be read: FileNotFoundError"),
        ("https://a.example/", {"headers": {"X-Api-Key": "canary"}}, "contains a secret"),
        ("https://a.example/", {"headers": {"x-acme-token": "canary"}}, "contains a secret"),
        ("https://a.example/", {"headers": {"Ocp-Apim-Subscription-Key": "canary"}}, "contains a secret"),
        ("https://a.example/", {"ca": "/dev/zero"}, "option ca cannot be read: ValueError"),
        ("https://a.example/", {"allow_private": ["a.example"]}, "allow_private is not an option of a route"),
        ("https://a.example/", {"allow_hosts": ["b.example"]}, "a.example is not in allow_hosts"),
        ("http://a.example/", {}, "http:// to a.example"),
        ("https://user:canary@a.example/", {}, "must not contain a user or a password"),
        ("https://a.example:0/", {}, "https://host/path"),
        ("https://a.example:canary/", {}, "cannot be parsed"),
        ("https://a.example/ü", {}, "URL in ASCII"),
        ("https://a.example/\r\nx", {}, "URL in ASCII"),
        ("https://a.example\\@b/", {}, "URL in ASCII"),
        ("https://a.example/#x", {}, "fragment"),
        ("https:///x", {}, "https://host/path"),
        ("https://127.0.0.1/", {}, "127.0.0.1 is loopback"),
        ("https://[fd00:ec2::254]/", {}, "fd00:ec2::254 is private"),
        ("https://[::ffff:10.0.0.1]/", {}, "IPv4-mapped"),
        ("https://a.example/", {"ca": 1}, "ca of an http target must be"),
        ("https://a.example/", {"rejects": [200]}, "rejects of an http target must be"),
        ("https://a.example/", {"max_response": 2**24 + 1}, "max_response of an http target must be"),
        ("https://a.example/", {"allow_hosts": "a.example"}, "allow_hosts of an http target must be"),
        ("https://a.example/", {"secrets": ["env:BARE"]}, "env:BARE is not a key for signatures"),
        ("https://a.example/", {"secrets": ["env:SHORT"]}, "env:SHORT is not a key for signatures"),
        ("ftp://a.example/", {}, "https://host/path"),
        ("https://-a.example/", {}, "neither a name nor an IP address"),
    ],
)
async def test_what_cannot_work_is_said(address, options, says):
    """An invalid address or option is refused before anything is sent; the message names it and contains no secret.
    Fails when: a check of an option is taken out.
    """
    with pytest.raises(ConfigurationError) as error:
        more = {"LINES": "canary\r\nx: y", "BARE": "A" * 32, "SHORT": "whsec_AAAA"}
        http.open(address, options, Secrets(KEYS | more))
    assert says in error.value.message
    assert "canary" not in f"{error.value.message} {error.value.hint}"


async def test_what_is_documented_is_what_there_is():
    """docs/how-to/http.md has every option with its default, and every status that OUTCOMES names.
    Fails when: an option or a status is taken out of the page.
    """
    text = (Path(__file__).parents[2] / "docs/how-to/http.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", text, re.MULTILINE))
    defaults = {name: default for name, (default, *_) in HTTP_OPTIONS.items()}

    assert rows.keys() == defaults.keys()
    for name, default in defaults.items():
        said = re.match(r"`([^`]+)`", rows[name])
        assert (said[1] if said else "") == (json.dumps(default).strip('"') if default or default is False else "")
    for status in STATUS_OUTCOMES:
        assert str(status) in text


async def test_routes_find_it_by_their_scheme():
    """A target for an external_endpoint of https or http is found by the entry points of the package.
    Fails when: an entry point is taken out of pyproject.toml.
    """
    targets = Targets(allow_private="localhost")
    for address in ("https://a.example/hook", "http://localhost/hook"):
        target = targets.find("external_endpoint", address, {})
        assert repr(target) == f"HttpTarget({address.removesuffix('/hook')})"
    await targets.aclose()


async def test_one_connection_of_http_2_outlives_what_is_left_on_it(receiver):
    """When a delivery on a shared HTTP/2 connection is given up, others on it still arrive; the next uses a new
    connection. Fails when: a connection with an unfinished request is used again, or closed under its other requests.
    """
    await receiver.ask("/seen")
    target = receiver.target(http2=True)
    await target.deliver(delivery())
    stays = asyncio.create_task(target.deliver(delivery(payload='{"hold": "stays"}')))
    with pytest.raises(Failed) as error:
        await target.deliver(delivery(payload='{"hold": "never"}', deadline=0.5))
    assert error.value.code == "timeout"
    await target.deliver(delivery())
    await receiver.ask("/release/stays")
    await stays

    first, *same, new = [got["client"] for got in await receiver.ask("/seen")]
    assert same == [first, first]
    assert new != first
    (line,) = target._pool._connections
    assert line.free
    await target.aclose()


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_of_a_long_answer_the_status_counts(receiver, http2):
    """Of an answer that is too long, the beginning is read and its status counts; then its connection is closed.
    Fails when: the answer is read to its end, or its connection is used again.
    """
    await receiver.ask("/count")
    target = receiver.target(http2=http2, max_response=1000)
    await target.deliver(delivery(payload='{"status": 200, "bytes": 3000000}'))
    assert not target._pool._connections
    with pytest.raises(Reject, match="HTTP 400: xxx"):
        await target.deliver(delivery(payload='{"status": 400, "bytes": 1001}'))
    await target.deliver(delivery(payload='{"status": 200, "bytes": 1000}'))
    await target.deliver(delivery())
    assert (await receiver.ask("/count"))["connections"] == 3
    await target.aclose()


@pytest.mark.parametrize(
    ("http2", "count"),
    [pytest.param(False, 3000, marks=pytest.mark.slow), pytest.param(True, 1000, marks=pytest.mark.slow)],
    ids=["1.1", "2"],
)
async def test_many_deliveries_use_few_connections(receiver, http2, count):
    """Many deliveries, 50 at a time, arrive once each, over at most 50 connections, or over one with HTTP/2.
    Fails when: a connection is not used again.
    """
    await receiver.ask("/count")
    target = receiver.target(http2=http2, secrets=["env:NEW"])
    left = iter(range(count))

    async def some() -> None:
        for _ in left:
            await target.deliver(delivery())

    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(50):
            tasks.create_task(some())
    print(f"{count / (time.monotonic() - began):.0f} deliveries a second")
    counts = await receiver.ask("/count")
    assert (counts["keys"], counts["requests"]) == (count, count)
    assert counts["connections"] <= (1 if http2 else 50)
    await target.aclose()


async def test_a_connection_that_the_other_side_closed_is_not_used(certificates, monkeypatch):
    """If the receiver closes a connection between two deliveries, the second one uses a new connection at once.
    Fails when: the target does not check whether a connection is still open.
    """
    taken, arrived = [], asyncio.Event()

    async def take(self, fresh):
        taken.append(fresh)
        return await honest(self, fresh)

    async def once(reader, writer):
        writer.write(response(204))
        await writer.drain()
        await arrived.wait()

    honest = HttpPool._take
    monkeypatch.setattr(HttpPool, "_take", take)
    async with raw(once, certificates.good) as server:
        target = server.target(ca=str(certificates.ca))
        await target.deliver(delivery())
        arrived.set()
        await server.left()
        await target.deliver(delivery())
        assert (server.connections, taken) == (2, [False, False])
        await target.aclose()


@pytest.mark.parametrize(
    ("answered", "connections", "requests", "code"),
    [({1, 3}, 2, 3, ""), ({1}, 2, 3, "disconnect"), (set(), 1, 1, "disconnect")],
)
async def test_a_connection_that_breaks_under_a_request(answered, connections, requests, code):
    """A request during which a reused connection breaks is sent once more, on a new connection.
    A request is not repeated when a new connection breaks, be it the first or the second one.
    Fails when: such a request is not repeated, or is repeated after a new connection broke.
    """

    async def behave(reader, writer):
        if len(server.requests) in answered:
            writer.write(response(204))
            await writer.drain()
            return True
        return False

    async with raw(behave) as server:
        target = server.target()
        if answered:
            await target.deliver(delivery())
        error = await caught(target, delivery())
        assert getattr(error, "code", "") == code
        assert (server.connections, len(server.requests)) == (connections, requests)


async def test_what_is_sent_once_more_goes_to_a_new_connection():
    """A request that met a closed connection is repeated on a new one, not on another that was idle for as long.
    Fails when: the repetition may use any connection.
    """
    asked, both = Counter(), asyncio.Event()

    async def behave(reader, writer):
        asked[writer] += 1
        if len(server.requests) == 2:
            both.set()
        if asked[writer] == 1:
            await both.wait()
            writer.write(response(204))
            await writer.drain()
        return asked[writer] == 1

    async with raw(behave) as server:
        target = server.target()
        await asyncio.gather(target.deliver(delivery()), target.deliver(delivery()))
        assert server.connections == 2
        await target.deliver(delivery())
        assert server.connections == 3
        await target.aclose()


async def test_connections_that_are_not_needed_go(monkeypatch):
    """After a burst, idle connections that are no longer needed are closed one by one, as others are used.
    Fails when: only the connection that is used next is examined.
    """
    monkeypatch.setattr(http_pool, "IDLE_TIMEOUT", 1.0)
    all_there = asyncio.Event()

    async def behave(reader, writer):
        if len(server.requests) == 3:
            all_there.set()
        await all_there.wait()
        writer.write(response(204))
        await writer.drain()
        return True

    async with raw(behave) as server:
        target = server.target()
        await asyncio.gather(*(target.deliver(delivery()) for _ in range(3)))
        assert server.open == 3
        deadline = time.monotonic() + 10
        while server.open > 1:
            assert time.monotonic() < deadline, "they are still there"
            await target.deliver(delivery())
        await target.aclose()


async def test_the_payload_of_binary_mode_is_the_body():
    """In binary mode the body is safe_payload and nothing else.
    Fails when: the body of the structured mode is sent.
    """
    async with raw(response(204)) as server:
        assert await caught(server.target(mode="binary"), delivery(payload='{"a": [1, 2]}')) is None
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert json.loads(body) == {"a": [1, 2]}
    assert b"content-type: application/json\r\n" in head
    assert SECRETS.get("env:NEW").reveal().encode() not in head
