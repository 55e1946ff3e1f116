"""A receiver of webhooks, run by granian: it keeps each request, and answers as the event's data asks.

Optional fields of an event's data:

    {"status": 404}   answer with this status instead of 204
    {"bytes": 9000}   answer with a body of so many bytes
    {"hold": "a"}     answer only after GET /release/a

    GET /seen     all requests since the previous GET /seen, as JSON
    GET /count    number of requests, and of distinct idempotency keys, connections and HTTP versions, since the
                  previous GET /count, as JSON
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict

seen: list[dict] = []
counts: dict[str, set] = defaultdict(set)
holds: dict[str, asyncio.Event] = defaultdict(asyncio.Event)


async def app(scope, receive, send):
    """The ASGI application."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    status, answer = await (told(scope["path"]) if scope["method"] == "GET" else got(scope, body))
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


async def told(path: str) -> tuple[int, bytes]:
    """Answer a request of the tests."""
    if path.startswith("/release/"):
        holds[path.removeprefix("/release/")].set()
        return 200, b"{}"
    if path == "/seen":
        answer = list(seen)
    else:
        answer = {name: len(found) for name, found in counts.items()}
        counts.clear()
    seen.clear()
    return 200, json.dumps(answer).encode()


async def got(scope: dict, body: bytes) -> tuple[int, bytes]:
    """Answer a request of a target."""
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    client = tuple(scope["client"])
    for name, value in (("keys", headers.get("idempotency-key")), ("connections", client),
                        ("versions", scope["http_version"]), ("requests", len(counts["requests"]))):  # fmt: skip
        counts[name].add(value)
    if len(seen) < 1000:
        seen.append({"method": scope["method"], "path": scope["path"], "version": scope["http_version"],
                     "client": client[1], "headers": headers, "body": body.decode()})  # fmt: skip
    data = json.loads(body)
    data = data.get("data", data)
    if "hold" in data:
        await holds[data["hold"]].wait()
    return data.get("status", 204), b"x" * data.get("bytes", 0)
