"""NATS JetStream as a target: ``nats://host:4222/subject`` or ``tls://…``.

The stream that stores a message acknowledges it. The header Nats-Msg-Id is the idempotency key: a repeated message
within the deduplication window of the stream is acknowledged as well, but is not stored again.
"""

from __future__ import annotations

import logging
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import anyio
from nats import errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js import errors as stream_errors

from iu_listen.model.delivery import Delivery, DeliveryError, Event, Failed, Reject, Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secret, Secrets
from iu_listen.targets.broker import (
    COMMON_OPTIONS,
    CONNECT_ERRORS,
    ErrorOutcome,
    Option,
    SharedConnection,
    close_quietly,
    guard_of,
    outcome_for,
    read_address,
    read_options,
    secret,
    text,
    tls_context,
)
from iu_listen.targets.cloudevents import attributes, header_value
from iu_listen.targets.guard import Guard, allowed

# The outcomes of deliveries contain the errors of the library; without a handler it would write them to stderr.
logging.getLogger("nats").addHandler(logging.NullHandler())

NATS_OPTIONS: Final[Mapping[str, Option]] = {
    **COMMON_OPTIONS,
    "token": text("a reference to a secret: env:NAME or file:/path"),
}

#: Longest subject, in bytes. After a control line longer than max_control_line (4096 bytes) a server closes the shared
#: connection; the line also contains the name of the inbox.
MAX_SUBJECT_BYTES: Final = 2048
#: Interval of pings, in seconds. After about three intervals without an answer the connection is given up.
PING_INTERVAL: Final = 5

#: The outcomes of errors while connecting.
NATS_CONNECT_ERRORS: Final = (
    *CONNECT_ERRORS,
    ErrorOutcome(errors.SecureConnWantedError, Unavailable, "tls", "the server offers no TLS"),
)

#: The outcomes of errors while publishing.
PUBLISH_ERRORS: Final = (
    ErrorOutcome(errors.MaxPayloadError, Reject, "too_large", "larger than the server accepts"),
    # No stream has the subject: the stream does not exist, or is not available yet after a restart.
    ErrorOutcome(stream_errors.NoStreamResponseError, Failed, "no_stream", "no stream has this subject"),
    ErrorOutcome(errors.BadSubjectError, Reject, "bad_subject", "invalid subject"),
    ErrorOutcome(
        (errors.ConnectionClosedError, errors.OutboundBufferLimitError, errors.ConnectionDrainingError, OSError),
        Unavailable, "connect", "the connection was lost",
    ),
)  # fmt: skip

#: The outcomes of answers of a stream, by its error code, else by its status.
STREAM_ERRORS: Final[Mapping[int, tuple[type[DeliveryError], str, str]]] = {
    10054: (Reject, "too_large", "larger than the stream accepts"),
    10060: (Failed, "wrong_stream", "another stream has this subject"),
    10076: (Failed, "no_jetstream", "JetStream is not enabled"),
    10039: (Failed, "no_jetstream", "JetStream is not enabled for this account"),
    10077: (Unavailable, "stream_full", "the stream is full"),
    10047: (Unavailable, "stream_full", "the storage is full"),
    10002: (Unavailable, "resources", "the account has no resources left"),
    10023: (Unavailable, "resources", "the server has no resources left"),
    503: (Unavailable, "stream_unavailable", "the stream accepts nothing at present"),
}


def open(address: str, options: Mapping[str, Any], secrets: Secrets) -> NatsTarget:
    """Create the target of an address, without a connection.

    Args:
        address: ``nats://host[:4222][,host…]/subject``. ``{type}``, ``{domain}`` and ``{stream}`` in the subject are
            replaced by the values of the event, each as one token. With ``tls://`` or the option ca, a server without
            TLS is refused.
        options: Values for options of NATS_OPTIONS.
        secrets: The secrets that the options may name.

    Raises:
        ConfigurationError: The address or an option is invalid.
    """
    where = read_address(address, 4222)
    given = read_options("nats", options, NATS_OPTIONS)
    if given["password"] and given["token"]:
        raise ConfigurationError("options token and password of a nats target exclude each other")
    return NatsTarget(
        # The option ca requires TLS, whatever the scheme.
        "tls" if given["ca"] else where.scheme,
        where.servers,
        subject_of(where.path),
        guard=guard_of(where, secrets),
        user=given["user"],
        password=secret(secrets, given["password"]),
        token=secret(secrets, given["token"]),
        ca=given["ca"],
        connect_timeout=given["connect_timeout"],
    )


def subject_of(template: str) -> Callable[[Event], str]:
    """A function that returns the subject for an event.

    Raises:
        ConfigurationError: The template is not a subject to which a message can be published.
    """
    plain = re.sub(r"\{(type|domain|stream)\}", "x", template)
    if not re.fullmatch(r"[^\s{}.*>$][^\s{}.*>]*(\.[^\s{}.*>]+)*", plain) or not plain.isprintable():
        raise ConfigurationError(
            "the subject of a nats target must be tokens between dots",
            "Example: nats://host/events.{domain}.{type}. Placeholders: {type}, {domain}, {stream}."
            " Not allowed: *, > and white space.",
        )

    def subject(event: Event) -> str:
        # A placeholder becomes exactly one token, so that a value can neither add levels nor be a wildcard.
        return re.sub(
            r"\{(type|domain|stream)\}",
            lambda found: re.sub(r"[^A-Za-z0-9_-]", "_", getattr(event, found[1])) or "_",
            template,
        )

    return subject


class _Client(Client):
    """A client that can require TLS, and reports its end at once.

    Attributes:
        stream: The JetStream context of the client.
        ended: Called when the connection ends.
        only_tls: Whether a server without TLS is refused.
    """

    stream: JetStreamContext
    ended: Callable[[], None]
    only_tls = False

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # The library calls its callback last. If sending the remaining data fails, it neither calls it nor closes the
        # socket.
        self.ended()
        try:
            await super()._close(status, do_cbs)
        except OSError:
            if self._transport is not None:
                self._transport.close()  # type: ignore[no-untyped-call]

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # Called before the client sends anything. The library accepts a server without TLS, whatever the scheme.
        if self.only_tls and initial_connection and not info.get("tls_required"):
            raise errors.SecureConnWantedError
        await super()._process_info(info, initial_connection)


class NatsTarget:
    """A subject of a NATS server. Implements flow.ports.Target.

    Args:
        scheme: ``nats``, or ``tls``, which refuses a server without TLS.
        servers: Host and port of each server.
        subject: Returns the subject for an event.
        guard: The allowed hosts and networks.
        user: The user; None: none.
        password: The password of the user.
        token: The token, instead of user and password.
        ca: Path of a file of CA certificates; None: the certificates of the system.
        connect_timeout: Longest time for connecting to one server, in seconds.

    Raises:
        ConfigurationError: The file of CA certificates cannot be read.
    """

    def __init__(
        self,
        scheme: str,
        servers: Sequence[tuple[str, int]],
        subject: Callable[[Event], str],
        *,
        guard: Guard,
        user: str | None = None,
        password: Secret | None = None,
        token: Secret | None = None,
        ca: str | None = None,
        connect_timeout: float = 5.0,
    ) -> None:
        self._scheme = scheme
        self._servers = servers
        self._guard = guard
        self._subject = subject
        self._user, self._password, self._token = user, password, token
        self._tls = tls_context(ca)
        self._connect_timeout = connect_timeout
        #: The subject of each running publication.
        self._publishing: dict[anyio.CancelScope, str] = {}
        self._link: SharedConnection[_Client] = SharedConnection(
            self._connect, _Client.close, connect_timeout * len(servers)
        )

    def __repr__(self) -> str:
        return f"NatsTarget({', '.join(f'{self._scheme}://{host}:{port}' for host, port in self._servers)})"

    async def deliver(self, delivery: Delivery, /) -> None:
        """Publish a message, and wait until the stream has stored it.

        Raises:
            DeliveryError: The message was not stored; PUBLISH_ERRORS and STREAM_ERRORS have the outcomes.
            TimeoutError: There was no answer within the deadline.
        """
        event = delivery.event
        subject, payload, headers = self._subject(event), event.payload.encode(), headers_of(delivery)
        if len(subject.encode()) > MAX_SUBJECT_BYTES:
            raise Reject(f"the subject is longer than {MAX_SUBJECT_BYTES} bytes", code="bad_subject")
        async with self._link.use() as client:
            # The library checks only the size of the payload. The server counts headers and payload, and closes the
            # shared connection if they are too large.
            if len(payload) + size_of(headers) > client.max_payload:
                raise Reject(f"larger than the server accepts ({client.max_payload} bytes)", code="too_large")
            with anyio.CancelScope() as scope:
                self._publishing[scope] = subject.lower()
                try:
                    await client.stream.publish(subject, payload, timeout=delivery.deadline, headers=headers)
                except stream_errors.APIError as error:
                    raise answered(error) from None
                except TimeoutError:
                    raise
                except (errors.Error, OSError) as error:
                    if client.is_closed:
                        # The client may have been closed before the link knew it.
                        self._link.lost(client)
                    raise outcome_for(error, PUBLISH_ERRORS) from None
                finally:
                    del self._publishing[scope]
            if scope.cancelled_caught:
                raise Failed("the user is not allowed to publish to the subject", code="not_authorized")

    async def aclose(self) -> None:
        """Close the connection in at most CLOSE_TIMEOUT seconds (broker.py)."""
        await self._link.aclose()

    async def _connect(self) -> _Client:
        failure: DeliveryError = Unavailable()
        # The servers are tried one by one here: the library would give up after the first server that accepts the
        # connection and does not answer.
        for server in random.sample(self._servers, len(self._servers)):
            try:
                with anyio.fail_after(self._connect_timeout):
                    return await self._connect_to(server)
            except TimeoutError as error:
                failure = outcome_for(error, NATS_CONNECT_ERRORS)
            except DeliveryError as error:
                failure = error
        raise failure

    async def _connect_to(self, server: tuple[str, int]) -> _Client:
        host, port = server
        # The client connects to the address that was checked; with a name the library would resolve it again.
        address = (await allowed(self._guard, host, port))[0]
        client = _Client()
        client.ended = partial(self._link.lost, client)
        client.only_tls = self._scheme == "tls"
        met: list[Exception] = []

        async def heard(error: Exception) -> None:
            met.append(error)
            self._heard(client, str(error))

        try:
            await client.connect(
                f"{self._scheme}://[{address}]:{port}" if ":" in address else f"{self._scheme}://{address}:{port}",
                # With automatic reconnects, publications would wait for the reconnect.
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                # The library requires whole seconds; the time limit of the caller ends connecting earlier.
                connect_timeout=math.ceil(self._connect_timeout),
                ping_interval=PING_INTERVAL,
                error_cb=heard,
                tls=self._tls,
                tls_hostname=host,
                user=self._user,
                password=self._password.reveal() if self._password else None,
                token=self._token.reveal() if self._token else None,
                name="iu-listen",
            )
        except BaseException as error:
            await close_quietly(Client.close, client)
            if not isinstance(error, Exception):
                raise
            if "authorization" in str(error).lower():
                raise Unavailable("the server rejected the login", code="auth") from None
            raise outcome_for(met[-1] if met else error, NATS_CONNECT_ERRORS, Unavailable) from None
        client.stream = client.jetstream()
        return client

    def _heard(self, client: _Client, words: str) -> None:
        """Handle the server's message that a publication or the subscription for answers is not allowed.

        Such a publication gets no answer, so it is cancelled here.
        """
        if found := re.search(r'permissions violation for (publish|subscription) to "(.*)"', words.lower()):
            if found[1] == "subscription":
                # Without the subscription the client receives no answers.
                self._link.lost(client)
            for scope in [scope for scope, subject in self._publishing.items() if subject == found[2]]:
                scope.cancel()


def headers_of(delivery: Delivery) -> dict[str, str]:
    """The headers of a message: idempotency key, trace context, and CloudEvents as in HTTP, percent-encoded."""
    plain = {"Nats-Msg-Id": delivery.idempotency_key, "Content-Type": "application/json"}
    plain["traceparent"] = delivery.traceparent
    return plain | {f"ce-{name}": header_value(value) for name, value in attributes(delivery).items()}


def size_of(headers: Mapping[str, str]) -> int:
    """The size of headers on the wire, in bytes: a first line, one line for each header, and an empty line."""
    return len("NATS/1.0\r\n\r\n") + sum(len(f"{name}: {value}\r\n".encode()) for name, value in headers.items())


def answered(error: stream_errors.APIError) -> DeliveryError:
    """The outcome for an error that a stream answered."""
    outcome, code, reason = STREAM_ERRORS.get(error.err_code or 0) or STREAM_ERRORS.get(error.code or 0) or (
        Failed, f"jetstream_{error.err_code or error.code}", "the stream refused the message",
    )  # fmt: skip
    return outcome(f"{reason} (code {error.err_code or error.code})", code=code)
