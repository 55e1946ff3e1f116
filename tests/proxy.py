"""A path to a database that can be broken: a TCP proxy that forwards, stalls, resets, refuses or redirects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Forwards connections to a server until a field says otherwise.

    Attributes:
        stalled: Accepts all data and forwards none, like a network that drops packets.
        refusing: Closes every new connection.
        mute: Accepts new connections and never sends data on them.
        reset_on: Resets the first connection whose client sends these bytes.
        asked: Called before each piece is forwarded, in either direction; False resets its connection instead.
    """

    def __init__(self, dsn: str) -> None:
        self._to = urlsplit(dsn)
        self.stalled = self.refusing = self.mute = False
        self.reset_on = b""
        self.asked: Callable[[], Awaitable[bool]] | None = None
        self.accepted = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._swallowed: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.dsn = ""

    def lead_to(self, dsn: str) -> None:
        """Forward new connections to another server, at the same address of the proxy; reset() ends the open ones."""
        self._to = urlsplit(dsn)

    def reset(self) -> None:
        """Abort every connection without an orderly end."""
        for writer in self._open:
            writer.transport.abort()

    def swallow(self) -> None:
        """Stall the connections that are open now, for good; new ones work, as behind a router that has restarted.

        Not even the end of a connection is forwarded.
        """
        self._swallowed |= self._open

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        serving = asyncio.current_task()
        assert serving is not None
        self._tasks.add(serving)
        ends = {writer}
        try:
            if not self.refusing:
                await self._forward(reader, writer, ends)
        finally:
            # Abort both ends for any reason of the end, also if the block ends in the middle of a connect.
            for end in ends:
                end.transport.abort()
            self._open -= ends
            self._swallowed -= ends
            self._tasks.discard(serving)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: set[asyncio.StreamWriter]
    ) -> None:
        pumps = set()
        if self.mute:
            pumps.add(asyncio.create_task(self._ignore(reader)))
        else:
            try:
                back, on = await asyncio.open_connection(self._to.hostname, self._to.port)
            except OSError:
                return
            ends.add(on)
            pumps.add(asyncio.create_task(self._pump(reader, on, True)))
            pumps.add(asyncio.create_task(self._pump(back, writer, False)))
        self._open |= ends
        self._tasks |= pumps
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        # The end of a swallowed connection is not forwarded either: each end has to detect the loss itself.
        if writer in self._swallowed:
            await asyncio.wait(pumps)

    async def _ignore(self, source: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while await source.read(65536):
                pass

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, client: bool) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if client and self.reset_on and self.reset_on in data:
                    self.reset_on = b""
                    return
                if self.asked is not None and not await self.asked():
                    return
                # Data that arrives during a stall is dropped, because the session that loses it is lost as well.
                if not self.stalled and sink not in self._swallowed:
                    sink.write(data)
                    await sink.drain()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = f"{self._to.username}:{self._to.password}@" if self._to.password else f"{self._to.username}@"
        self.dsn = urlunsplit(self._to._replace(netloc=f"{user}127.0.0.1:{port}"))
        try:
            yield self
        finally:
            server.close()
            self.reset()
            left = list(self._tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
