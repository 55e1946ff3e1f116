"""The text that identifies a called target in the audit, and the span of a call that is derived from it.

Examples: ``workflow crm``, ``POST https://example.com:8443``, ``kafka://one:9092/orders``. The text is stored and
exported. So it contains no user, password or query, and no path of an HTTP URL, because each may contain a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

#: URL schemes of brokers, with the name of each system in OpenTelemetry.
BROKER_SYSTEMS: Final[Mapping[str, str]] = {
    "kafka": "kafka", "nats": "nats", "tls": "nats",
    "redis": "redis", "rediss": "redis", "valkey": "redis", "valkeys": "redis",
}  # fmt: skip
#: Default ports, by scheme.
DEFAULT_PORTS: Final[Mapping[str, int]] = {
    "http": 80, "https": 443, "kafka": 9092, "nats": 4222, "tls": 4222,
    "redis": 6379, "rediss": 6379, "valkey": 6379, "valkeys": 6379,
}  # fmt: skip
#: Longest text, in characters. Longer texts are cut off.
MAX_CALLED_CHARS: Final = 500


def split_address(address: str) -> SplitResult:
    """The parts of an address whose ``netloc`` may be a list of servers: ``scheme://host[:port][,host[:port]…]/path``.

    ``urlsplit`` alone does not suffice: in some versions of Python it refuses an IPv6 address in a list.

    Raises:
        ValueError: A bracket of a server is not closed, or does not contain an IPv6 address.
    """
    scheme, separator, rest = address.partition("://")
    servers = re.split("[/?#]", rest, maxsplit=1)[0]
    for server in servers.split(","):
        urlsplit(f"//{server}")
    return urlsplit(f"{scheme}{separator}{rest.removeprefix(servers)}")._replace(netloc=servers)


def called(kind: str, reference: str, options: Mapping[str, Any]) -> str:
    """The text of a route's target; empty: its address is not valid, so nothing can be called.

    Args:
        kind: ``target_kind`` of the route.
        reference: ``target_ref`` of the route.
        options: ``target`` of its delivery policy.
    """
    return _called(kind, reference, str(options.get("method") or "POST"), str(options.get("stream") or ""))


@lru_cache(maxsize=1024)
def _called(kind: str, reference: str, method: str, stream: str) -> str:
    if kind != "external_endpoint":
        return f"{kind} {reference}"[:MAX_CALLED_CHARS]
    try:
        parts = split_address(reference)
    except ValueError:
        return ""
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    if parts.scheme in ("http", "https"):
        return f"{method} {address}"[:MAX_CALLED_CHARS]
    match BROKER_SYSTEMS.get(parts.scheme):
        case None:
            return address[:MAX_CALLED_CHARS]
        case "redis":
            return f"{address}/{stream or parse_qs(parts.query).get('stream', [''])[0]}"[:MAX_CALLED_CHARS]
        case _:
            return f"{address}/{unquote(parts.path.removeprefix('/'))}"[:MAX_CALLED_CHARS]


def in_process(text: str) -> bool:
    """Whether a text of called() names a coroutine. Its span is the attempt, and there is no span of the call."""
    return text.startswith("workflow ")


class Callee(NamedTuple):
    """A called target, by the semantic conventions of OpenTelemetry.

    Attributes:
        kind: Kind of the span: ``client`` or ``producer``.
        name: Name of the span.
        attributes: Attributes that are equal for every call of this target.
        destination: Destination of a message, which may contain placeholders; empty: the target is not a broker.
    """

    kind: str
    name: str
    attributes: Mapping[str, str | int]
    destination: str = ""


@lru_cache(maxsize=1024)
def callee(text: str) -> Callee:
    """The Callee for a text of called(), for a target outside of this process.

    HTTP: https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-client-span. Messaging: a ``send`` span
        whose
    context is carried by its message has the kind producer.
    """
    head, _, address = text.rpartition(" ")
    scheme, _, rest = address.partition("://")
    hosts, _, path = rest.partition("/")
    found: dict[str, str | int] = {"iu.target": text, **_server(scheme, hosts)}
    if scheme in ("http", "https"):
        # The path is not stored, so the URL shows where it was cut off.
        # For a call that ended the process only the server is known, and not the method.
        found |= {"http.request.method": head or "_OTHER", "url.full": f"{address}/REDACTED"}
        return Callee("client", head or "HTTP", found)
    if scheme not in BROKER_SYSTEMS:
        return Callee("client", "deliver", found)
    found["messaging.system"] = BROKER_SYSTEMS[scheme]
    found |= {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    if "{" in path:
        found["messaging.destination.template"] = path
    return Callee("producer", f"send {path}".rstrip(), found, path)


def destination_of(template: str, event_domain: str | None, event_type: str | None) -> str | None:
    """Fill in the placeholders of a destination for one event; None: a value is not known."""
    known = {"domain": event_domain, "type": event_type}
    parts = re.split(r"\{(\w+)\}", template)
    for number in range(1, len(parts), 2):
        value = known.get(parts[number])
        if value is None:
            return None
        # Like the target does it: a value becomes one token of the destination.
        parts[number] = re.sub(r"[^A-Za-z0-9_-]", "_", value) or "_"
    return "".join(parts)


def _server(scheme: str, hosts: str) -> Mapping[str, str | int]:
    """Attributes of the server; empty for several servers, because the one that took the call is not known."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:,]*)(?::(\d+))?", hosts)
    if found is None or not found[1]:
        return {}
    port = int(found[2]) if found[2] else DEFAULT_PORTS.get(scheme)
    server: dict[str, str | int] = {"server.address": found[1].strip("[]")}
    return {**server, "server.port": port} if port else server
