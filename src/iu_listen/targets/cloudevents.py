"""CloudEvents 1.0: an event as one JSON document (structured), or as headers beside its payload (binary)."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Final
from urllib.parse import quote

from iu_listen.model.delivery import Delivery
from iu_listen.model.spans import starting_context

#: Headers and body of a request.
Message = tuple[dict[str, str], bytes]

_CHARACTER: Final = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})"
#: A URI-reference of RFC 3986, without IPv6 addresses: it begins with a scheme or with a segment without a colon.
_URI_REFERENCE: Final = re.compile(
    rf"(?:[A-Za-z][A-Za-z0-9+.\-]*:|(?![^/?#]*:))"
    rf"{_CHARACTER}*(?:\?(?:{_CHARACTER}|\?)*)?(?:\#(?:{_CHARACTER}|\?)*)?"
)
#: The punctuation that the HTTP binding (3.1.3.2) does not percent-encode. Letters and digits are not encoded either;
#: all other characters are, in particular CR, LF and non-ASCII characters.
_PLAIN: Final = "".join(c for c in string.punctuation if c not in '"%')


def header_value(text: str) -> str:
    """A text as the value of a header, percent-encoded as the HTTP binding specifies."""
    return quote(text, safe=_PLAIN, errors="replace")


def uri_reference(text: str) -> str:
    """The text itself if it is a URI-reference, else the percent-encoded text."""
    return text if _URI_REFERENCE.fullmatch(text) else quote(text, safe="/", errors="replace")


def attributes(delivery: Delivery) -> dict[str, str]:
    """The CloudEvents attributes of an event as texts, without those that have no value."""
    event = delivery.event
    when = event.occurred_at or event.created_at
    found = {
        "specversion": "1.0",
        "id": str(event.id),
        "source": uri_reference(event.source or f"iu-listen/{event.domain}"),
        "type": event.type,
        "datacontenttype": "application/json",
        "subject": event.subject,
        "time": when and when.astimezone(UTC).isoformat(),
        # The extension contains the context of the event's origin, not of the current hop (cloudevents/spec,
        # distributed-tracing). The context of the current hop is in the header traceparent.
        "traceparent": starting_context(event.id, event.traceparent),
        "correlationid": event.correlation_id,
        "domain": event.domain,
        "stream": event.stream,
    }
    return {name: value for name, value in found.items() if value}


def structured(delivery: Delivery) -> Message:
    """Attributes and payload in the body. The payload is inserted as the database wrote it, without parsing it."""
    head = json.dumps(attributes(delivery), ensure_ascii=False)[:-1]
    return {"content-type": "application/cloudevents+json"}, f'{head}, "data": {delivery.event.payload}}}'.encode()


def binary(delivery: Delivery) -> Message:
    """The payload as the body, the attributes as headers."""
    named = attributes(delivery)
    headers = {"content-type": named.pop("datacontenttype")}
    return headers | {
        f"ce-{name}": header_value(value) for name, value in named.items()
    }, delivery.event.payload.encode()


#: The content modes, by the value of the option ``mode``.
MODES: Final[Mapping[str, Callable[[Delivery], Message]]] = {"structured": structured, "binary": binary}
