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
from iu_listen.model.trace import starting_context

#: Headers and body of a request.
Message = tuple[dict[str, str], bytes]

_CHARACTER: Final = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})"
#: RFC 3986, without addresses of IPv6: a scheme, or a first segment without a colon.
_URI_REFERENCE: Final = re.compile(
    rf"(?:[A-Za-z][A-Za-z0-9+.\-]*:|(?![^/?#]*:))"
    rf"{_CHARACTER}*(?:\?(?:{_CHARACTER}|\?)*)?(?:\#(?:{_CHARACTER}|\?)*)?"
)
#: What the HTTP binding (3.1.3.2) leaves as it is. All else, above all CR, LF and what is no ASCII, is percent-encoded.
_PLAIN: Final = "".join(c for c in string.punctuation if c not in '"%')


def header_value(text: str) -> str:
    """A text as the value of a header: percent-encoded as the HTTP binding says. A plain text stays what it is."""
    return quote(text, safe=_PLAIN, errors="replace")


def uri_reference(text: str) -> str:
    """A text as a URI-reference: itself where it is one, else percent-encoded."""
    return text if _URI_REFERENCE.fullmatch(text) else quote(text, safe="/", errors="replace")


def attributes(delivery: Delivery) -> dict[str, str]:
    """The attributes of an event and their values, as text; without those that it does not have."""
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
        # The extension never carries a single hop (cloudevents/spec, distributed-tracing); the header beside it does.
        "traceparent": starting_context(event.id, event.traceparent),
        "correlationid": event.correlation_id,
        "domain": event.domain,
        "stream": event.stream,
    }
    return {name: value for name, value in found.items() if value}


def structured(delivery: Delivery) -> Message:
    """Everything in the body. The payload stands there as the database wrote it, not read and written again."""
    head = json.dumps(attributes(delivery), ensure_ascii=False)[:-1]
    return {"content-type": "application/cloudevents+json"}, f'{head}, "data": {delivery.event.payload}}}'.encode()


def binary(delivery: Delivery) -> Message:
    """The payload as the body, the attributes as headers."""
    named = attributes(delivery)
    headers = {"content-type": named.pop("datacontenttype")}
    return headers | {
        f"ce-{name}": header_value(value) for name, value in named.items()
    }, delivery.event.payload.encode()


#: The modes, by the name that an option gives.
MODES: Final[Mapping[str, Callable[[Delivery], Message]]] = {"structured": structured, "binary": binary}
