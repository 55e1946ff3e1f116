"""The target of the demo's live route: a coroutine that sends each event to a receiver, and that receiver."""

from __future__ import annotations

import json
import os
from typing import Final

import anyio
import anyio.abc

from iu_listen.model.delivery import Delivery, Failed, Reject, Unavailable
from iu_listen.targets.python import target

#: The environment variable with the port of the receiver, for the consumer of the demo.
RECEIVER_PORT_VARIABLE: Final = "IU_DEMO_RECEIVER"


@target("demo-crm")
async def to_crm(delivery: Delivery) -> None:
    """Send one event to the receiver."""
    try:
        stream = await anyio.connect_tcp("127.0.0.1", int(os.environ[RECEIVER_PORT_VARIABLE]))
    except OSError as error:
        raise Unavailable("the receiver is not there") from error
    async with stream:
        await stream.send(json.dumps({"subject": delivery.event.subject, "key": delivery.idempotency_key}).encode())
        answer = (await stream.receive()).decode()
    if answer == "later":
        raise Failed("the receiver is busy")
    if answer != "taken":
        raise Reject(answer)


class Receiver:
    """The receiver of events. Their subject decides whether it accepts, postpones or rejects them.

    Attributes:
        busy: Subjects whose next event it postpones once.
        unknown: Subjects whose events it rejects.
        taken: Idempotency keys of the accepted events.
        port: The TCP port; 0 until serve() has chosen one.
    """

    def __init__(self) -> None:
        self.busy: set[str] = set()
        self.unknown: set[str] = set()
        self.taken: set[str] = set()
        self.port: int = 0
        self._scope: anyio.CancelScope | None = None

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Accept connections until close(). Each call uses the same port."""
        self._scope = anyio.CancelScope()
        with self._scope:
            async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port) as listener:
                self.port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 of anyio, not of Django
                task_status.started()
                await listener.serve(self._answer)

    def close(self) -> None:
        """Stop accepting connections."""
        if self._scope is not None:
            self._scope.cancel()

    async def _answer(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            call = json.loads(await stream.receive())
            if call["subject"] in self.busy:
                self.busy.remove(call["subject"])
                answer = "later"
            elif call["subject"] in self.unknown:
                answer = "unknown customer"
            else:
                self.taken.add(call["key"])
                answer = "taken"
            await stream.send(answer.encode())
