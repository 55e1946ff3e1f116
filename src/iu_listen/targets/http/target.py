"""Webhooks: an event as a CloudEvent in an HTTP request, signed as Standard Webhooks specifies.

The connections are those of http1.py, or of http2.py if the route offers HTTP/2. They follow no redirects, use no
proxies of the environment and no cookies, and do not decompress answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urljoin

import anyio

from iu_listen.flow.ports import Target
from iu_listen.model.delivery import Delivery, DeliveryError, Failed, Reject, Unavailable
from iu_listen.model.retry_after import parse_retry_after
from iu_listen.model.secrets import Secrets
from iu_listen.targets.cloudevents import MODES, header_value
from iu_listen.targets.guard import HttpOrigin, Resolve, resolve
from iu_listen.targets.http.backend import GuardedBackend
from iu_listen.targets.http.http1 import Http1Connection
from iu_listen.targets.http.http2 import Http2Connection
from iu_listen.targets.http.options import HttpOptions, read_options
from iu_listen.targets.http.pool import HttpAnswer, HttpPool, HttpRequest

#: Longest wait for a connection, and for its TLS handshake, in seconds. A third of the deadline is used if it is less,
#: so that both together stay below the deadline.
MAX_CONNECT_TIMEOUT: Final = 10.0
#: Largest number of redirects that are followed.
MAX_REDIRECTS: Final = 2
#: Longest part of an answer that is recorded, in characters.
MAX_EXCERPT_CHARS: Final = 200

#: The outcomes of statuses that are not in the option ``rejects``: by status, else by its first digit, else Failed. For
#: example 401, 403, 404 and 502 count as Unavailable at first, because a receiver that is being deployed, or whose key
#: was changed, answers so to every event. If other deliveries of the route succeed, the circuit breaker attributes the
#: failure to the event (docs/why/delivery.md).
STATUS_OUTCOMES: Final[Mapping[int, type[DeliveryError]]] = {
    408: Failed,
    425: Failed,
    502: Unavailable,
    503: Unavailable,
    3: Reject,
    4: Unavailable,
}


class HttpTarget:
    """Delivers events to one URL. Implements flow.ports.Target.

    Args:
        options: The address and the options of the route.
        resolve: Resolves host names.
        clock: Returns the seconds since 1970, for signatures.
    """

    def __init__(
        self, options: HttpOptions, resolve: Resolve = resolve, clock: Callable[[], float] = time.time
    ) -> None:
        self._options = options
        self._clock = clock
        backend = GuardedBackend(options.guard, resolve)
        kind = Http2Connection if options.http2 else Http1Connection
        self._pool = HttpPool(lambda: kind(options.address, options.tls, backend), shared=options.http2)

    def __repr__(self) -> str:
        return f"HttpTarget({self._options.address.scheme}://{self._options.address.authority})"

    async def deliver(self, delivery: Delivery, /) -> None:
        """Deliver one event; the delivery is successful if the status is 2xx.

        Raises:
            Reject: The receiver will never accept this event: the status is one of ``rejects``, or a redirect that is
                not followed.
            Unavailable: No connection could be opened (``dns``, ``address_refused``, ``connect``, ``tls``), or the
                status is 502, 503, or a 4xx that is not listed here.
            Failed: The status is 408, 425 or another 5xx, there was no answer in time (``timeout``), or the connection
                broke before the answer was complete (``disconnect``).
        """
        headers, body = self.message(delivery)
        try:
            with anyio.fail_after(delivery.deadline):
                answer = await self._follow(headers, body, min(MAX_CONNECT_TIMEOUT, delivery.deadline / 3))
        except TimeoutError:
            raise Failed(f"no answer within {delivery.deadline:g} s", code="timeout") from None
        self._settle(answer)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    def message(self, delivery: Delivery) -> tuple[dict[str, str], bytes]:
        """Headers and body of the request for a delivery."""
        headers, body = MODES[self._options.mode](delivery)
        headers |= {
            "host": self._options.address.authority,
            "content-length": str(len(body)),
            "user-agent": "iu-listen",
            "idempotency-key": header_value(delivery.idempotency_key),
            "traceparent": delivery.traceparent,
        }
        if self._options.signers:
            # The signed content is separated by dots, so a dot in the key is encoded. Different keys stay different.
            name = quote(delivery.idempotency_key, safe=":", errors="replace").replace(".", "%2E")
            now = datetime.fromtimestamp(int(self._clock()), UTC)
            signatures = [signer.sign(name, now, body.decode()) for signer in self._options.signers]
            headers |= {
                "webhook-id": name,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": " ".join(signatures),
            }
        return {**headers, **self._options.headers}, body

    async def _follow(self, headers: Mapping[str, str], body: bytes, connect: float) -> HttpAnswer:
        """Send the request, and follow redirects of the same origin with status 307 or 308, at most MAX_REDIRECTS.

        Returns:
            The last answer, or the first redirect that is not followed.
        """
        address = self._options.address
        for _ in range(MAX_REDIRECTS):
            answer = await self._ask(address, headers, body, connect)
            if answer.status not in {307, 308} or not (there := answer.header("location")):
                return answer
            try:
                address = HttpOrigin.parse(urljoin(f"{address.scheme}://{address.authority}{address.path}", there))
            except ValueError:
                return answer
            if address.origin != self._options.address.origin:
                return answer
        return await self._ask(address, headers, body, connect)

    async def _ask(self, address: HttpOrigin, headers: Mapping[str, str], body: bytes, connect: float) -> HttpAnswer:
        return await self._pool.ask(
            HttpRequest(
                method=self._options.method,
                path=address.path,
                headers=headers,
                body=body,
                connect=connect,
                most=self._options.max_response,
            )
        )

    def _settle(self, answer: HttpAnswer) -> None:
        status = answer.status
        if 200 <= status < 300:
            return
        kind = STATUS_OUTCOMES.get(status) or STATUS_OUTCOMES.get(status // 100, Failed)
        if status in self._options.rejects:
            kind = Reject
        code = "redirect" if 300 <= status < 400 else f"http_{status}"
        said = self._excerpt(answer)
        raise kind(
            f"HTTP {status}: {said}" if said else f"HTTP {status}",
            code=code,
            retry_after=parse_retry_after(answer.header("retry-after"), self._clock()) if kind is Unavailable else None,
        )

    def _excerpt(self, answer: HttpAnswer) -> str:
        """The first MAX_EXCERPT_CHARS characters of an answer, without secrets and without unprintable characters."""
        text = answer.body.decode(errors="replace")
        for secret in self._options.hidden:
            text = text.replace(secret, "***")
        if not answer.whole and self._options.hidden:
            # A secret may be cut at the end of the text, so as many characters as the longest secret has are removed.
            text = text[: -len(self._options.hidden[0])]
        # Each unprintable character becomes a blank. Removing it could join two halves of a secret.
        return "".join(c if c.isprintable() else " " for c in text)[:MAX_EXCERPT_CHARS].strip()


def open(address: str, options: Mapping[str, Any], secrets: Secrets) -> Target:
    """Create the target of a route, without a connection.

    Args:
        address: An https URL, or an http URL if IU_LISTEN_ALLOW_PRIVATE has its host.
        options: ``target`` of the delivery policy: docs/how-to/http.md.
        secrets: The secrets that the options may name; they are read once, by this function.

    Raises:
        ConfigurationError: The address or an option is invalid.
    """
    return HttpTarget(read_options(address, options, secrets))
