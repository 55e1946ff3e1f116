"""Attacks on the HTTP target by a receiver, a route or an event, and the outcomes."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import time
import traceback
from unittest.mock import ANY

import pytest

from iu_listen.model.delivery import Failed, Reject, Unavailable
from iu_listen.targets import http
from iu_listen.targets.guard import resolve
from iu_listen.targets.http.options import read_options
from iu_listen.targets.http.pool import BODY_TIMEOUT
from iu_listen.targets.http.target import HttpTarget
from targets.http_receivers import KEYS, SECRETS, delivery, raw, response

pytestmark = pytest.mark.asyncio

#: The deadline, in seconds, of a delivery to a receiver that does not complete its answer.
SHORT = 1.0


async def drip(writer, head, drop):
    """Send a beginning, and then a small part every 10 ms, until the other side has closed the connection."""
    writer.write(head)
    while True:
        writer.write(drop)
        await writer.drain()
        await asyncio.sleep(0.01)


async def silence(reader, writer):
    """Send nothing until the other side has closed the connection."""
    await reader.read()


def redirect(to, status=307):
    return response(status, location=to)


#: The behaviour of the receiver; the expected exception, its code, and the text that is kept of the answer.
RECEIVERS = {
    "redirect to the metadata of a cloud": (redirect("http://169.254.169.254/"), Reject, "redirect", "HTTP 307"),
    "redirect to another host": (redirect("http://127.0.0.1:PORT/"), Reject, "redirect", "HTTP 307"),
    "redirect to another port": (redirect("http://localhost:1/"), Reject, "redirect", "HTTP 307"),
    "redirect to another scheme": (redirect("https://localhost:PORT/"), Reject, "redirect", "HTTP 307"),
    "redirect to a host without a scheme": (redirect("//other.example/"), Reject, "redirect", "HTTP 307"),
    "redirect with a password": (redirect("http://a:b@localhost:PORT/"), Reject, "redirect", "HTTP 307"),
    "redirect to a file": (redirect("file:///etc/passwd"), Reject, "redirect", "HTTP 307"),
    "redirect to nothing": (response(307), Reject, "redirect", "HTTP 307"),
    "redirect to what is no URL": (redirect("http://[/ü"), Reject, "redirect", "HTTP 307"),
    "redirect that would change the method": (redirect("/", 302), Reject, "redirect", "HTTP 302"),
    "redirects without end": (redirect("/again"), Reject, "redirect", "HTTP 307"),
    "answer that is no UTF-8": (response(400, b"\xff\xfe caf\xe9"), Reject, "http_400", "HTTP 400: �� caf�"),
    "answer with codes of a terminal": (response(400, b"a\x1b[2Jb\r\n\x00c"), Reject, "http_400", "HTTP 400: a [2Jb   c"),
    "answer that turns the line around": (response(400, "a\u202eb".encode()), Reject, "http_400", "HTTP 400: a b"),
    "long reason": (response(400, b"y" * 9000), Reject, "http_400", "HTTP 400: " + "y" * 200),
    "answer of zeros, packed": (response(400, gzip.compress(bytes(10_000_000)), content_encoding="gzip"),
                                Reject, "http_400", "HTTP 400: \x1f"),
    "answer that is cut off": (response(400, b"half")[:-2] , Reject, "http_400", "HTTP 400: ha"),
    "answer without end": (lambda r, w: drip(w, b"HTTP/1.1 400 X\r\n\r\n", b"z" * 65_536), Reject, "http_400", "HTTP 400: zzz"),
    "answer that drips": (lambda r, w: drip(w, b"HTTP/1.1 400 X\r\n\r\n", b"z"), Reject, "http_400", "HTTP 400: zzz"),
    "headers that drip": (lambda r, w: drip(w, b"HTTP/1.1 200 X\r\n", b"a: b\r\n"), Failed, "timeout", "no answer within 1 s"),
    "headers without end": (lambda r, w: drip(w, b"HTTP/1.1 200 X\r\n", b"a: b\r\n" * 9999), Failed, "disconnect", "not HTTP"),
    "interim answers without end": (lambda r, w: drip(w, b"", b"HTTP/1.1 103 X\r\n\r\n"), Failed, "timeout", "no answer within"),
    "silence": (silence, Failed, "timeout", "no answer within 1 s"),
    "hanging up": (lambda r, w: asyncio.sleep(0), Failed, "disconnect", "before it answered"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", Failed, "disconnect", "not HTTP"),
    "a header folded into two": (b"HTTP/1.1 200 X\r\nbad header: 1\r\n\r\n", Failed, "disconnect", "not HTTP"),
    "switching protocols": (response(101, upgrade="websocket", connection="upgrade"), Failed, "disconnect", "not HTTP"),
}  # fmt: skip


@pytest.mark.parametrize(("behave", "kind", "code", "says"), RECEIVERS.values(), ids=RECEIVERS.keys())
async def test_an_evil_receiver_hurts_itself_only(behave, kind, code, says):
    """Whatever a receiver answers, the delivery ends in time with the tested outcome, and its connection is closed.
    Fails when: a redirect to another origin is followed, an answer is read or kept without limits, or its end is waited
    for.
    """
    began = time.monotonic()

    async def ends(reader, writer):
        await behave(reader, writer)

    async def bytes_of(reader, writer):
        writer.write(behave.replace(b"PORT", str(server.port).encode()))
        await writer.drain()
        # An incomplete answer ends with its connection.
        return not says.endswith("ha")

    async with raw(ends if callable(behave) else bytes_of) as server:
        target = server.target()
        with pytest.raises(kind) as error:
            await target.deliver(delivery(deadline=SHORT))
        if callable(behave):
            await server.left()
        assert error.value.code == code
        assert says in error.value.reason or says == "HTTP 400: \x1f"
        assert error.value.reason.isprintable()
        assert len(error.value.reason) <= len("HTTP 400: ") + 200
        assert len(server.requests) == (3 if behave == redirect("/again") else 1)
        assert server.connections == 1
        assert time.monotonic() - began < 10 * SHORT
        await target.aclose()


async def test_an_answer_without_end_is_not_waited_for():
    """An answer that exceeds the limit for reading is abandoned at once, even if the deadline is far away.
    Fails when: reading continues beyond max_response.
    """

    async def endless(reader, writer):
        await drip(writer, b"HTTP/1.1 200 X\r\n\r\n", b"z" * 65_536)

    async with raw(endless) as server:
        target = server.target()
        began = time.monotonic()
        await target.deliver(delivery(deadline=60))
        assert time.monotonic() - began < BODY_TIMEOUT
        await server.left()
        await target.aclose()


async def test_a_redirect_to_the_same_origin_is_followed_twice():
    """307 and 308 to the same origin are followed twice, with the same method, body and key; the last answer counts.
    Fails when: no redirect is followed, or only one.
    """

    async def behave(reader, writer):
        writer.write([redirect("/one", 308), redirect("two?x=1"), response(204)][len(server.requests) - 1])
        await writer.drain()
        return True

    async with raw(behave) as server:
        target = server.target("/from/here")
        await target.deliver(delivery("key-1"))
        await target.aclose()
    lines = [request.split(b"\r\n", 1)[0] for request in server.requests]
    assert lines == [b"POST /from/here HTTP/1.1", b"POST /one HTTP/1.1", b"POST /two?x=1 HTTP/1.1"]
    assert len({request.split(b"\r\n", 1)[1] for request in server.requests}) == 1


@pytest.mark.parametrize(
    ("certificate", "says"),
    [
        ("expired", "certificate has expired"),
        ("other_host", "Hostname mismatch"),
        ("strange", "unable to get local issuer certificate"),
        ("self_signed", "self-signed certificate"),
    ],
)
async def test_bad_certificates_are_an_outage(certificates, certificate, says):
    """A receiver without a valid certificate gets no request, and the outcome is an outage.
    Fails when: certificates or names are not verified.
    """
    async with raw(response(204), getattr(certificates, certificate)) as server:
        target = server.target(ca=str(certificates.ca))
        with pytest.raises(Unavailable, match=says) as error:
            await target.deliver(delivery())
        assert error.value.code == "tls"
        assert server.requests == []
        await target.aclose()


async def test_a_trusted_certificate_is_trusted_because_of_the_option(certificates):
    """Without the option ca, a receiver with a certificate of the tests' authority is not trusted.
    Fails when: certificates are not verified.
    """
    async with raw(response(204), certificates.good) as server:
        target = server.target()
        with pytest.raises(Unavailable) as error:
            await target.deliver(delivery())
        assert (error.value.code, server.requests) == ("tls", [])


async def nowhere(host, port):
    raise socket.gaierror(socket.EAI_NONAME, "canary")


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("nobody", "connect", "ConnectionRefusedError"),
        ("no name", "dns", "cannot be resolved: gaierror"),
        ("no TLS", "tls", "TLS with localhost failed"),
        ("silence", "tls", "TLS with localhost failed"),
    ],
)
async def test_where_nobody_is_the_route_waits(what, code, says):
    """A failure before a request is sent is an outage with a code that names it; so is silence, before the deadline.
    Fails when: a failure of the connection is attributed to the event.
    """
    left = asyncio.Event()

    async def talk(reader, writer):
        if what == "no TLS":
            writer.write(b"HTTP/1.1 400 no\r\n\r\n")
        await silence(reader, writer)
        writer.close()
        left.set()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if what == "nobody":
        server.close()
        await server.wait_closed()
    options = read_options(f"https://localhost:{port}/", {}, SECRETS)
    target = HttpTarget(options, nowhere if what == "no name" else resolve)
    with pytest.raises(Unavailable, match=says) as error:
        await target.deliver(delivery(deadline=SHORT))
    assert error.value.code == code
    if code == "tls":
        await asyncio.wait_for(left.wait(), 10)
    await target.aclose()
    server.close()


async def test_those_who_wait_for_a_connection_of_http_2_hear_that_there_is_none():
    """If an HTTP/2 connection that many deliveries wait for cannot be opened, all of them fail at once.
    Fails when: each delivery tries separately, until the last ones reach their deadline.
    """
    connections = 0

    async def listen(reader, writer):
        nonlocal connections
        connections += 1
        await silence(reader, writer)
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = http.open(f"https://localhost:{port}/", {"http2": True}, SECRETS)
        tries = [target.deliver(delivery(deadline=1.5)) for _ in range(5)]
        errors = await asyncio.gather(*tries, return_exceptions=True)
        assert {(type(error), error.code) for error in errors} == {(Unavailable, "tls")}
        assert connections == 1
        await target.aclose()


async def test_nobody_waits_for_the_answer_of_the_first(receiver):
    """Over HTTP/2, deliveries are sent as soon as the connection is open, even if the first one waits for its answer.
    Fails when: waiting deliveries are notified by the first answer, and not by the connection.
    """
    await receiver.ask("/seen")
    target = receiver.target(http2=True)
    first = asyncio.create_task(target.deliver(delivery(payload='{"hold": "first"}')))
    await asyncio.sleep(0)
    await asyncio.wait_for(target.deliver(delivery()), 10)
    assert not first.done()
    await receiver.ask("/release/first")
    await first
    assert len({got["client"] for got in await receiver.ask("/seen")}) == 1
    await target.aclose()


async def test_those_who_wait_outlive_the_one_that_they_wait_for(receiver):
    """If the delivery that opens an HTTP/2 connection is cancelled, the waiting ones still arrive, over one connection.
    Fails when: waiting deliveries are notified of a success only.
    """
    await receiver.ask("/count")
    target = receiver.target(http2=True)
    first = asyncio.create_task(target.deliver(delivery()))
    others = [asyncio.create_task(target.deliver(delivery())) for _ in range(5)]
    for _ in range(3):
        await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.gather(first, *others, return_exceptions=True) == [ANY] + [None] * 5
    assert first.cancelled()
    counts = await receiver.ask("/count")
    assert (counts["keys"], counts["connections"]) == (5, 1)
    await target.aclose()


EVIL = "x\r\nX-Evil: 1\r\n\r\nPOST / HTTP/1.1\x00 ü ☃ \ud800"


@pytest.mark.parametrize("mode", ["structured", "binary"])
async def test_no_value_becomes_a_header_of_its_own(mode):
    """Line ends, control and non-ASCII characters in values of an event or its route do not get into a header
    unencoded. Fails when: a value is put into a header without being percent-encoded.
    """
    plain = EVIL.replace("\ud800", "")
    sent = delivery(f"outbound:{plain}:1", subject=plain, type=plain, source=plain, domain=plain, stream=plain,
                    correlation_id=plain, traceparent=plain)  # fmt: skip
    async with raw(response(204)) as server:
        target = server.target(mode=mode, secrets=["env:NEW"])
        await target.deliver(sent)
        await target.aclose()
    (request,) = server.requests
    head = request.partition(b"\r\n\r\n")[0].decode("ascii")
    names = [line.split(": ", 1)[0] for line in head.split("\r\n")[1:]]
    assert all(32 <= ord(c) < 127 for c in head.replace("\r\n", ""))
    assert len(names) == len(set(names))
    assert "x-evil" not in {name.lower() for name in names}
    # The header names the event's own trace, because the producer's value is invalid.
    assert f"\r\ntraceparent: 00-{sent.event.id.hex}-" in head
    # So does the extension of CloudEvents, which is in a header or in the body.
    assert request.count(f"00-{sent.event.id.hex}-".encode()) == 2
    assert ("ce-subject" in names) == (mode == "binary")


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_secrets_are_told_to_nobody_but_the_receiver(receiver, caplog, http2):
    """No secret is in a repr, a log, an error or its traceback, although the receiver sends back the request.
    Fails when: the answer is kept unchanged, hpack may log, or a secret is in a repr.
    """
    caplog.set_level(logging.DEBUG)
    token, key = KEYS["TOKEN"], KEYS["NEW"]
    # hpack itself hides the header authorization, but no other header.
    headers = {"x-key": {"secret": "env:TOKEN"}}
    options = {
        "headers": headers,
        "secrets": ["env:NEW"],
        "ca": str(receiver.ca),
        "http2": http2,
    }
    read = read_options(f"https://localhost:{receiver.port}/", options, SECRETS)
    target = HttpTarget(read)
    told = [repr(read), repr(target), str(vars(target))]
    with pytest.raises(Reject) as error:
        await target.deliver(delivery(payload='{"status": 400}'))
    told += ["".join(traceback.format_exception(error.value)), repr(error.value), caplog.text]
    await target.aclose()
    assert caplog.records
    for text in told:
        assert token not in text
        assert "canary" not in text
        assert key.removeprefix("whsec_") not in text


@pytest.mark.parametrize(
    "echo",
    [
        "{token}",
        "<<{token}>>",
        '{{"was": {json}}}',
        "?t={url}",
        "Basic {base64}",
        "{key}",
        "{bare}",
        "{halves}",
        "{token:.9}",
    ],
)
async def test_a_receiver_that_sends_secrets_back_is_not_quoted(echo):
    """A secret that an answer repeats is removed from the dead letter, in every usual encoding, also if it is
    truncated. Fails when: the answer is kept unchanged, characters are removed before secrets are, or a truncated
    secret is kept.
    """
    import base64
    import json
    from urllib.parse import quote

    token, key = KEYS["TOKEN"], KEYS["NEW"]
    body = echo.format(token=token, json=json.dumps(token), url=quote(token, safe=""), key=key, bare=key[6:],
                       base64=base64.b64encode(token.encode()).decode(), halves=token[:6] + "\x00" + token[6:])  # fmt: skip
    cut = {"max_response": len(body)} if "9" in echo else {}
    sent = response(400, body.encode() + (b"!" if cut else b""))
    async with raw(sent) as server:
        headers = {"authorization": {"secret": "env:TOKEN", "prefix": "Bearer "}}
        target = server.target(headers=headers, secrets=["env:NEW"], **cut)
        with pytest.raises(Reject) as error:
            await target.deliver(delivery())
        await target.aclose()
    said = error.value.reason
    if "halves" in echo:
        assert token not in said
    else:
        assert all(part not in said for part in ("canary", "7f3a", base64.b64encode(b"canary-").decode()[:8], key[6:]))


async def test_being_cancelled_leaves_nothing_behind():
    """A delivery that is cancelled at any point closes its connection, and the target continues to work.
    Fails when: a connection with an incomplete answer is used again or stays open.
    """

    async def behave(reader, writer):
        if len(server.requests) == 2:
            writer.write(response(204))
            await writer.drain()
            return True
        started.set()
        await silence(reader, writer)
        return False

    started = asyncio.Event()
    async with raw(behave) as server:
        target = server.target()
        task = asyncio.create_task(target.deliver(delivery()))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not target._pool._connections
        await target.deliver(delivery())
        assert server.connections == 2
        await target.aclose()
        await server.left()


async def test_being_cancelled_while_tls_begins_leaves_nothing_behind():
    """A delivery that is cancelled during the TLS handshake closes its connection.
    Fails when: the connection is left to the garbage collector.
    """
    came, left = asyncio.Event(), asyncio.Event()

    async def listen(reader, writer):
        await reader.read(1)
        came.set()
        await silence(reader, writer)
        writer.close()
        left.set()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = http.open(f"https://localhost:{port}/", {}, SECRETS)
        task = asyncio.create_task(target.deliver(delivery()))
        await came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(left.wait(), 10)
        await target.aclose()
