"""The options of an HTTP target: the allowed values, and the settings that result from them."""

from __future__ import annotations

import base64
import binascii
import json
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from standardwebhooks import Webhook

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secret, Secrets, read_ca
from iu_listen.targets.guard import Guard, HostNotAllowed, HttpOrigin, allow_hint, check_host

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~\-]+")
#: Values of headers: visible ASCII, with blanks that are neither first nor last.
_HEADER_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
#: Headers that a route may not set: those that the target sets, those of message framing, and those for proxies.
_RESERVED_HEADERS: Final = re.compile(
    r"host|content-.*|transfer-encoding|te|trailer|connection|keep-alive|upgrade|expect|proxy-.*|:.*"
    r"|idempotency-key|traceparent|webhook-.*|ce-.*",
    re.IGNORECASE,
)
#: Headers that contain a secret: the usual headers for credentials, and headers whose name suggests a secret.
_SECRET_HEADERS: Final = re.compile(
    r"authorization|.*-authorization|cookie|.*(api-?key|access-?key|secret|token|passw(or)?d|credential|signature).*"
    r"|x-auth(-.*)?|.*-key",
    re.IGNORECASE,
)


#: The hint if a route sets allow_private: the process, not the route, decides which hosts may be reached.
ALLOW_PRIVATE_HINT: Final = "The setting IU_LISTEN_ALLOW_PRIVATE of the consumer defines which hosts may be reached."


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v for v in value)


def _headers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, str)
        or (isinstance(v, dict) and "secret" in v and {"secret", "prefix"} >= v.keys() and _texts([v["secret"]])
            and isinstance(v.get("prefix", ""), str))
        for v in value.values()
    )  # fmt: skip


#: Statuses that make an event a dead letter at once, because they concern the request, not the state of the receiver.
REJECTED_STATUSES: Final = [400, 405, 406, 409, 410, 411, 413, 414, 415, 416, 422, 431, 451]

#: The options, each with its default, a test of a value, and a description of the allowed values.
HTTP_OPTIONS: Final[Mapping[str, tuple[Any, Callable[[Any], bool], str]]] = {
    "mode": ("structured", lambda v: v in ("structured", "binary"), "structured or binary"),
    "method": ("POST", lambda v: v in ("POST", "PUT"), "POST or PUT"),
    "http2": (False, lambda v: isinstance(v, bool), "true or false"),
    "secrets": ([], _texts, "a list of env:NAME or file:/path"),
    "headers": ({}, _headers, 'an object of texts, or of {"secret": "env:NAME", "prefix": "Bearer "}'),
    "allow_hosts": (None, _texts, "a list of host names"),
    "ca": ("", lambda v: isinstance(v, str), "the path of a file with certificates (PEM)"),
    "rejects": (
        REJECTED_STATUSES,
        lambda v: isinstance(v, list) and all(type(s) is int and 300 <= s <= 599 for s in v),
        "a list of statuses, 300 to 599",
    ),
    "max_response": (65_536, lambda v: type(v) is int and 1 <= v <= 2**24, "a whole number of bytes, 1 to 16777216"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """The address and the options of an HTTP target, validated and with secrets resolved.

    Attributes:
        address: The URL of the receiver.
        mode: Content mode of CloudEvents: ``structured`` or ``binary``.
        method: ``POST`` or ``PUT``.
        http2: Whether HTTP/2 is offered to the receiver.
        guard: The allowed hosts and networks.
        tls: The TLS context with the trusted CA certificates.
        max_response: Largest part of an answer that is read, in bytes.
        rejects: Statuses that make an event a dead letter at once.
        signers: The signing keys; each adds a signature.
        headers: Fixed headers.
        hidden: All secrets, in all encodings in which an answer may contain them.
    """

    address: HttpOrigin
    mode: str
    method: str
    http2: bool
    guard: Guard
    tls: ssl.SSLContext
    max_response: int
    rejects: frozenset[int]
    signers: tuple[Webhook, ...] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    hidden: tuple[str, ...] = field(repr=False)


def read_options(address: str, options: Mapping[str, Any], secrets: Secrets) -> HttpOptions:
    """Read the address and the options of a route.

    Raises:
        ConfigurationError: The address or an option is invalid. The message names the option and the allowed values. It
            does not show values that may be a misplaced secret.
    """
    given = {name: default for name, (default, _, _) in HTTP_OPTIONS.items()}
    for name, value in options.items():
        if name == "allow_private":
            raise ConfigurationError("allow_private is not an option of a route", ALLOW_PRIVATE_HINT)
        if name not in HTTP_OPTIONS:
            raise ConfigurationError(
                f"an http target has no option {name[:40]!a}", f"Options: {', '.join(sorted(HTTP_OPTIONS))}"
            )
        _, good, what = HTTP_OPTIONS[name]
        if not good(value):
            raise ConfigurationError(f"option {name} of an http target must be {what}")
        given[name] = value
    guard = Guard.allowing(secrets.allow_private)
    keys = [secrets.get(name) for name in given["secrets"]]
    headers, hidden = _read_headers(given["headers"], secrets)
    return HttpOptions(
        address=_read_address(address, guard, given["allow_hosts"]),
        mode=given["mode"],
        method=given["method"],
        http2=given["http2"],
        guard=guard,
        tls=_read_ca(given["ca"]),
        max_response=given["max_response"],
        rejects=frozenset(given["rejects"]),
        signers=tuple(_signer(key) for key in keys),
        headers=headers,
        hidden=_spellings([*hidden, *(part for key in keys for part in (key.reveal(), _base64(key)))]),
    )


def _read_address(text: str, guard: Guard, only: Iterable[str] | None) -> HttpOrigin:
    try:
        address = HttpOrigin.parse(text)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    if only is not None and address.host not in {name.lower().rstrip(".") for name in only}:
        raise ConfigurationError(f"{address.host} is not in allow_hosts")
    check_host(guard, address.host)
    if address.scheme == "http" and not guard.trusts(address.host):
        raise HostNotAllowed(
            f"http:// to {address.host} would send events without encryption",
            f"Use https://, or {allow_hint(address.host)}",
        )
    return address


def _read_headers(given: Mapping[str, Any], secrets: Secrets) -> tuple[dict[str, str], list[str]]:
    headers, hidden = {}, []
    for name, value in ((name.lower(), value) for name, value in given.items()):
        if not _HEADER_NAME.fullmatch(name) or _RESERVED_HEADERS.fullmatch(name):
            raise ConfigurationError(
                f"option headers must not contain {name[:40]!a}", "The target sets this header, or the name is invalid."
            )
        if isinstance(value, str):
            if _SECRET_HEADERS.fullmatch(name):
                raise ConfigurationError(
                    f"the header {name} contains a secret: give a reference to it",
                    f"Option headers is {HTTP_OPTIONS['headers'][2]}",
                )
            headers[name] = value
        else:
            secret = secrets.get(value["secret"]).reveal()
            headers[name] = value.get("prefix", "") + secret
            hidden.append(secret)
        if not _HEADER_VALUE.fullmatch(headers[name]):
            raise ConfigurationError(
                f"the value of the header {name} is empty, or contains characters that are not printable ASCII"
            )
    return headers, hidden


def _read_ca(path: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=read_ca(path))
    except (OSError, ValueError) as error:
        # ssl.SSLError, for a file without certificates, is a subclass of OSError.
        raise ConfigurationError(f"the file of option ca cannot be read: {type(error).__name__}, {path!a}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _base64(key: Secret) -> str:
    return key.reveal().removeprefix("whsec_")


def _signer(key: Secret) -> Webhook:
    try:
        raw = base64.b64decode(_base64(key), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # Standard Webhooks requires at least 24 bytes, but some senders use 16.
    if not key.reveal().startswith("whsec_") or len(raw) < 16:
        raise ConfigurationError(
            f"{key.name} is not a key for signatures", "Expected: whsec_ and the base64 of 24 to 64 bytes."
        )
    return Webhook(raw)


def _spellings(secrets: Iterable[str]) -> tuple[str, ...]:
    """Secrets as plain text, in JSON, in a URL and in base64; the longest first, because one may contain another."""
    found = {
        spelling
        for s in secrets
        for spelling in (s, json.dumps(s)[1:-1], quote(s, safe=""), base64.b64encode(s.encode()).decode().rstrip("="))
    }
    return tuple(sorted(found, key=len, reverse=True))
