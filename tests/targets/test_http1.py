"""The connections of HTTP/1.1: which answers are accepted, and when a connection is used again."""

from __future__ import annotations

import asyncio

import pytest

from iu_listen.model.delivery import Failed, Reject, Unavailable
from iu_listen.targets import http
from iu_listen.targets.http.pool import Disconnected, HttpRequest
from targets.http_receivers import SECRETS, delivery, raw, response

pytestmark = [pytest.mark.asyncio, pytest.mark.both_loops]

WITHOUT_LENGTH = b"HTTP/1.1 400 X\r\n\r\nfull"
CHUNKED = b"HTTP/1.1 503 X\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfull\r\n0\r\nretry-after: 9\r\n\r\n"
#: Answers, each with the expected outcome, and whether its connection can be used again.
ANSWERS = {
    "a length": (response(400, b"full"), "HTTP 400: full", True),
    "no length": (WITHOUT_LENGTH, "HTTP 400: full", False),
    "chunks": (CHUNKED, "HTTP 503: full", True),
    "the last one": (response(400, b"full", connection="close"), "HTTP 400: full", False),
    "an old version": (response(400, b"full").replace(b"/1.1", b"/1.0"), "HTTP 400: full", False),
    "interim answers": (b"HTTP/1.1 103 X\r\nretry-after: 9\r\n\r\n" * 9 + response(503, b"full"), "HTTP 503: full", True),
    "two lengths": (response(400, b"full", transfer_encoding="chunked"), "not HTTP", False),
    "a line end only": (response(400, b"full").replace(b"\r\n", b"\n"), "not HTTP", False),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "says", "again"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_ends_where_the_rfc_says(answer, says, again):
    """The body is complete by its length, its chunks, or the end of the connection; interim answers and trailers do not
    count. The connection is used again if the answer allows it.
    Fails when: a connection that cannot be used again is, or a complete body is treated as incomplete, so that its end
    is cut off for the sake of the secrets.
    """

    async def behave(reader, writer):
        writer.write(answer)
        await writer.drain()
        return answer != WITHOUT_LENGTH

    async with raw(behave) as server:
        target = server.target(headers={"x-key": {"secret": "env:TOKEN"}})
        for _ in range(2):
            with pytest.raises((Failed, Reject, Unavailable)) as error:
                await target.deliver(delivery())
            assert says in error.value.reason
            assert error.value.retry_after is None
        assert server.connections == (1 if again else 2)
        await target.aclose()


@pytest.mark.parametrize("wait", [0.0, 0.05], ids=["at once", "later"])
async def test_an_answer_without_a_request_answers_no_request(wait):
    """Bytes that follow an answer, in the same packet or later, are not taken for the answer to the next request.
    Fails when: a connection on which further bytes arrived is used again.
    """

    async def behave(reader, writer):
        if server.connections == 2:
            writer.write(response(204))
        elif wait:
            writer.write(response(204))
            await asyncio.sleep(wait)
            writer.write(response(400, b"forged"))
        else:
            writer.write(response(204) + response(400, b"forged"))
        await writer.drain()
        return True

    async with raw(behave) as server:
        target = server.target()
        await target.deliver(delivery())
        await asyncio.sleep(2 * wait)
        await target.deliver(delivery())
        assert server.connections == 2
        await target.aclose()


async def test_a_connection_that_a_receiver_fills_while_it_is_idle_is_closed():
    """A receiver that sends bytes without a request gets no further request on this connection.
    Fails when: bytes that arrive without a request are kept, or are ignored.
    """
    async with raw(response(204)) as server:
        target = server.target()
        await target.deliver(delivery())
        (line,) = target._pool._connections
        line.connection.data_received(b"HTTP/1.1 ")
        await server.left()
        await target.deliver(delivery())
        assert server.connections == 2
        await target.aclose()


async def test_a_receiver_may_refuse_a_request_before_its_end():
    """If the receiver answers before it has read the body, and closes the connection, its answer counts.
    Fails when: an error while writing the request ends the delivery, although an answer has arrived.
    """

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response(413, b"too much", connection="close"))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = http.open(f"http://localhost:{port}/", {}, SECRETS)
        for _ in range(5):
            with pytest.raises(Reject) as error:
                await target.deliver(delivery(payload=f'"{"x" * 8_000_000}"'))
            assert error.value.code == "http_413"
        await target.aclose()


@pytest.mark.parametrize("part", ["path", "name", "value"])
async def test_a_line_end_is_not_sent(part):
    """A request with a line end in its path or header is refused by the connection itself.
    Fails when: the connection relies on the target, and writes the text as it is.
    """
    evil = "x\r\nevil: 1"
    async with raw(response(204)) as server:
        target = server.target()
        request = HttpRequest(
            method="POST",
            path=f"/{evil}" if part == "path" else "/",
            headers={
                "host": "localhost",
                "content-length": "0",
                evil if part == "name" else "x": evil if part == "value" else "x",
            },
            body=b"",
            connect=1.0,
            most=1,
        )
        with pytest.raises(Disconnected):
            await target._pool.ask(request)
        assert server.connections == 0
        await target.aclose()


async def test_a_receiver_is_told_that_http_1_1_follows(certificates):
    """In the TLS handshake the connection offers HTTP/1.1 and nothing else (ALPN).
    Fails when: no protocol is offered, or HTTP/2 is.
    """
    offers = []

    async def behave(reader, writer):
        offers.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.write(response(204))
        await writer.drain()

    tls = certificates.good
    tls.set_alpn_protocols(["h2", "http/1.1"])
    try:
        async with raw(behave, tls) as server:
            target = server.target(ca=str(certificates.ca))
            await target.deliver(delivery())
            await target.aclose()
    finally:
        tls.set_alpn_protocols([])
    assert offers == ["http/1.1"]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_being_cancelled_at_any_step_closes_the_connection(certificates, secure):
    """A delivery that is cancelled at any step of the event loop, also while it connects, leaves no open connection.
    Fails when: a socket is not closed if connecting ends early.
    """

    async def behave(reader, writer):
        await reader.read()

    async with raw(behave, certificates.good if secure else None) as server:
        for steps in range(40):
            target = server.target(ca=str(certificates.ca))
            task = asyncio.create_task(target.deliver(delivery()))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not target._pool._connections
            await server.left()
