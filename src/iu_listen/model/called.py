"""What a delivery calls: as the audit keeps it, and as the span of the call is named.

A text such as ``workflow crm``, ``POST https://example.com:8443`` or ``kafka://one:9092/orders``. It is stored and
exported, so it has neither user nor password nor query, and of a URL not even the path: each may hold a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

#: Schemes of brokers, and what OpenTelemetry calls each system.
BROKERS: Final[Mapping[str, str]] = {
    "kafka": "kafka", "nats": "nats", "tls": "nats",
    "redis": "redis", "rediss": "redis", "valkey": "redis", "valkeys": "redis",
}  # fmt: skip
#: The port where an address names none.
PORTS: Final[Mapping[str, int]] = {
    "http": 80, "https": 443, "kafka": 9092, "nats": 4222, "tls": 4222,
    "redis": 6379, "rediss": 6379, "valkey": 6379, "valkeys": 6379,
}  # fmt: skip
#: Longest text, in characters.
LONGEST: Final = 500


def called(kind: str, reference: str, options: Mapping[str, Any]) -> str:
    """What a route calls, as text; empty: its address is none, and nothing can be called.

    Args:
        kind: ``target_kind`` of the route.
        reference: ``target_ref`` of the route.
        options: ``target`` of its delivery policy.
    """
    return _called(kind, reference, str(options.get("method") or "POST"), str(options.get("stream") or ""))


@lru_cache(maxsize=1024)
def _called(kind: str, reference: str, method: str, stream: str) -> str:
    if kind != "external_endpoint":
        return f"{kind} {reference}"[:LONGEST]
    try:
        parts = urlsplit(reference)
    except ValueError:
        return ""
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    if parts.scheme in ("http", "https"):
        return f"{method} {address}"[:LONGEST]
    match BROKERS.get(parts.scheme):
        case None:
            return address[:LONGEST]
        case "redis":
            return f"{address}/{stream or parse_qs(parts.query).get('stream', [''])[0]}"[:LONGEST]
        case _:
            return f"{address}/{unquote(parts.path.removeprefix('/'))}"[:LONGEST]


def in_process(text: str) -> bool:
    """Whether what called() has made is a coroutine: the attempt is the span of its work, and no call has one."""
    return text.startswith("workflow ")


class Callee(NamedTuple):
    """The same, as OpenTelemetry's conventions want it.

    Attributes:
        kind: Kind of the span: ``client`` or ``producer``.
        name: Its name.
        attributes: What is the same in every call.
        destination: Of a message, where it goes; it may have placeholders. Empty: it is no message.
    """

    kind: str
    name: str
    attributes: Mapping[str, str | int]
    destination: str = ""


@lru_cache(maxsize=1024)
def callee(text: str) -> Callee:
    """What called() has made, of what is not in this process.

    HTTP: https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-client-span; messages: a message that
    carries the context of its own ``send`` span makes that a producer.
    """
    head, _, address = text.rpartition(" ")
    scheme, _, rest = address.partition("://")
    hosts, _, path = rest.partition("/")
    found: dict[str, str | int] = {"iu.target": text, **_server(scheme, hosts)}
    if scheme in ("http", "https"):
        # The path is not kept; so the URL says where it was cut.
        # Of a call that ended the process only the server is known.
        found |= {"http.request.method": head or "_OTHER", "url.full": f"{address}/REDACTED"}
        return Callee("client", head or "HTTP", found)
    if scheme not in BROKERS:
        return Callee("client", "deliver", found)
    found["messaging.system"] = BROKERS[scheme]
    found |= {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    if "{" in path:
        found["messaging.destination.template"] = path
    return Callee("producer", f"send {path}".rstrip(), found, path)


def destination_of(template: str, event_domain: str | None, event_type: str | None) -> str | None:
    """Where an event goes, of a destination that may have placeholders; None: not all of it is known."""
    known = {"domain": event_domain, "type": event_type}
    parts = re.split(r"\{(\w+)\}", template)
    for number in range(1, len(parts), 2):
        value = known.get(parts[number])
        if value is None:
            return None
        # As the target replaces them: one placeholder is one token.
        parts[number] = re.sub(r"[^A-Za-z0-9_-]", "_", value) or "_"
    return "".join(parts)


def _server(scheme: str, hosts: str) -> Mapping[str, str | int]:
    """The server, where there is one; of several nobody knows which took the call."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:,]*)(?::(\d+))?", hosts)
    if found is None or not found[1]:
        return {}
    port = int(found[2]) if found[2] else PORTS.get(scheme)
    server: dict[str, str | int] = {"server.address": found[1].strip("[]")}
    return {**server, "server.port": port} if port else server
