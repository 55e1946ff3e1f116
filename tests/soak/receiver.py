"""A trace receiver in a separate process that can be killed: it writes spans to a file before it acknowledges them.

Standard input has its behaviour, one in each line: keep, 503, 429, no answer.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from telemetry.receiver import GrpcReceiver, Receiver, says

HTTP = {"keep": None, "503": says(503), "429": says(429, retry_after="2")}
GRPC = {
    "keep": None,
    "503": lambda _: ("UNAVAILABLE", {}, b""),
    "429": lambda _: ("RESOURCE_EXHAUSTED", {}, b""),
}


def name(span: Any) -> str:
    """The name of a span; "batch" for a batch span, because it has the same name as an attempt."""
    return "batch" if any(a.key == "messaging.batch.message_count" for a in span.attributes) else span.name


def main(protocol: str, port: str, file: str) -> None:
    """Receive until the process is killed."""
    with Path(file).open("ab", buffering=0) as accepted:

        def keep(self: Receiver, request: Any) -> None:
            spans = [span for r in request.resource_spans for scope in r.scope_spans for span in scope.spans]
            accepted.write(b"".join(f"{span.span_id.hex()} {name(span)}\n".encode() for span in spans))

        # A killed predecessor may have left an incomplete line.
        accepted.write(b"\n")
        kind, behaviours = (GrpcReceiver, GRPC) if protocol == "grpc" else (Receiver, HTTP)
        receiver = type("Filing", (kind,), {"keep": keep})(int(port))
        print(receiver.endpoint, flush=True)

        def hangs(request: Any) -> Any:
            """Do not answer until the behaviour is changed."""
            while receiver.behaviour is hangs:
                time.sleep(0.1)
            return behaviours["503"](request)

        for line in sys.stdin:
            receiver.behaviour = hangs if line.strip() == "no answer" else behaviours[line.strip()]
            print("yes", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
