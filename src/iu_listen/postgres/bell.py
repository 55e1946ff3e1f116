"""The bell session: LISTEN, and the advisory lock that says "asleep". The protocol is in sql/worker/010_wake.up.sql.

It is never pooled, never in a transaction, and never writes the outbox: its own lock would not keep its own
trigger from staying silent. So it is read-only.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from iu_listen.flow.ports import NoBell
from iu_listen.flow.ring import Ring
from iu_listen.model.errors import Refused, SessionLost
from iu_listen.model.facts import CHANNEL
from iu_listen.model.settings import Settings
from iu_listen.postgres.former import Former, succeeding
from iu_listen.postgres.session import Connection, ask, errors_become_ours
from iu_listen.postgres.sqlfiles import query

#: First key of the advisory locks that say "asleep"; the second is the slot. Known to the trigger.
BELL_KEY: Final = 726001
#: First key of the advisory locks by which a process claims a slot.
SLOT_KEY: Final = 726002
#: The slots that the trigger asks. Every one costs writers; two serve an active consumer and its successor.
SLOTS: Final = (1, 2)
#: How long the token that proves LISTEN may take, in seconds.
TOKEN_WAIT: Final = 2.0


class BellSession:
    """Satisfies flow.ports.Bell. Made by bell_session()."""

    def __init__(self, connection: Connection, settings: Settings, ended: Ring) -> None:
        self._connection = connection
        self._settings = settings
        self._ended = ended
        # arm() and disarm() come from the working task, the checks of watch() from another one.
        self._turn = anyio.Lock()
        self.slot: int | None = None

    async def _ask(self, statement: str, *args: Any) -> Any:
        async with self._turn:
            try:
                return await ask(self._connection, self._settings.deadline, statement, *args)
            except SessionLost:
                # The driver does not always tell of an end that a statement ran into.
                self._ended.set()
                raise
            except Refused as no:
                # An exhausted lock table, a statement_timeout: the bell is lost then, not the work.
                self._connection.terminate()
                raise SessionLost(no.message, no.hint) from no

    async def claim_slot(self) -> None:
        """Take a slot that nobody has. Without one the consumer cannot arm: it polls, and loses nothing."""
        for slot in SLOTS:
            if await self._ask("select pg_try_advisory_lock($1, $2)", SLOT_KEY, slot):
                self.slot = slot
                return

    async def arm(self) -> bool:
        """Say "asleep" to all writers. False: a silent writer is not visible yet, or there is no free slot."""
        return self.slot is not None and bool(
            await self._ask("select pg_try_advisory_lock($1, $2)", BELL_KEY, self.slot)
        )

    async def disarm(self) -> None:
        """Say "awake"."""
        await self._ask("select pg_advisory_unlock($1, $2)", BELL_KEY, self.slot)

    async def watch(self) -> None:
        """Prove, once a cadence, that the session is alive and listening. Ends only by raising SessionLost."""
        while not await self._ended.wait_rung(self._settings.catch_up):
            if not await self._ask(query("is_listening"), CHANNEL):
                raise SessionLost("the session does not listen any more")
            if self.slot is None:
                await self.claim_slot()
        raise SessionLost("the connection was closed")


@asynccontextmanager
async def bell_session(settings: Settings, former: Former, ring: Callable[[], None]) -> AsyncIterator[BellSession]:
    """Open the bell session and prove that it hears.

    Raises:
        NoBell: LISTEN is switched off, or does not work there: a transaction pooler.
        SessionLost: no session can be had.
    """
    if not settings.listen:
        raise NoBell("listening is switched off (--no-listen)")
    dsn = settings.listen_dsn or settings.dsn
    # Longer than the pause between the checks of watch(); a frozen process lets go of the bell after it.
    idle = max(settings.lease, 3 * settings.catch_up)
    name = f"iu-listen bell {settings.worker}"
    # A path that forgets us between the two messages of a statement leaves an open transaction, in which a session is
    # not idle, and no statement runs: the server would free nothing of the notification queue for anybody.
    ended, token, heard = Ring(), secrets.token_hex(8), Ring()

    def on_notification(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == token:
            heard.set()
        ring()

    def on_end(_connection: object) -> None:
        ended.set()
        heard.set()
        ring()

    async with succeeding(
        former, "bell", dsn, name=name, deadline=settings.deadline, patience=settings.deadline, idle_timeout=idle,
        read_only=True, transaction_timeout=2 * settings.deadline,
    ) as connection:  # fmt: skip
        connection.add_termination_listener(on_end)
        try:
            with errors_become_ours(), anyio.fail_after(settings.deadline):
                await connection.add_listener(CHANNEL, on_notification)
        except Refused as no:
            raise NoBell(f"LISTEN failed: {no.message}") from no
        await _prove_that_it_hears(connection, settings, former, token, heard)
        bell = BellSession(connection, settings, ended)
        await bell.claim_slot()
        yield bell


async def _prove_that_it_hears(
    connection: Connection, settings: Settings, former: Former, token: str, heard: Ring
) -> None:
    """Send a token from a second session: only that tells a transaction pooler.

    pg_listening_channels() does not: behind a quiet pooler it names the channel, and notifications are lost.
    """
    async with succeeding(
        former, "token", settings.listen_dsn or settings.dsn, name="iu-listen token", deadline=settings.deadline,
        patience=settings.deadline,
    ) as other:  # fmt: skip
        # The usage is asked for what it does first: it frees what nobody needs any more. A queue that was full stays
        # full otherwise, even after the listener that blocked it is gone.
        room = "select pg_notification_queue_usage(), pg_notify($1, $2)"
        await ask(other, settings.deadline, room, CHANNEL, token)
        arrived = await heard.wait_rung(TOKEN_WAIT)
        # A session that was cut, or whose path swallows everything, hears nothing either, and is no pooler.
        await ask(connection, settings.deadline, query("backend_pid"))
        if not arrived:
            raise NoBell(
                "a notification sent from another session did not arrive: a pooler in transaction mode is in between; "
                "give a direct connection with --listen-dsn"
            )
