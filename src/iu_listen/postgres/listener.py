"""The listener session: it receives wake-ups (LISTEN) and holds the armed lock, as sql/functions/wake.up.sql defines.

The session is never pooled, is never left in a transaction, and is read-only. It must not insert events: the trigger
tests whether the armed lock is free, and a lock of its own session counts as free, so it would send no NOTIFY.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from iu_listen.flow.ports import ListenUnavailable
from iu_listen.flow.wake_event import WakeEvent
from iu_listen.model.errors import Refused, SessionLost
from iu_listen.model.routing import CHANNEL
from iu_listen.model.settings import Settings
from iu_listen.postgres.earlier_sessions import EarlierSessions, replacing_earlier
from iu_listen.postgres.session import Connection, ask, translate_driver_errors
from iu_listen.postgres.sqlfiles import query

#: First key of the advisory locks of armed consumers; the second key is the hash of the slot, as in the trigger.
BELL_KEY: Final = 726001
#: First key of the advisory locks by which a process claims a slot; the second key is the hash of the slot.
SLOT_KEY: Final = 726002
#: The slots of each domain. The trigger tests both: two are enough for a consumer and its successor.
LISTENER_SLOTS: Final = (1, 2)
#: Longest wait for the notification with which a new session tests LISTEN, in seconds.
LISTEN_TEST_TIMEOUT: Final = 2.0


_TRY_LOCK: Final = "select pg_try_advisory_lock($1, hashtext($2))"


def slot_name(domain: str, slot: int) -> str:
    """The text whose hash is the second key of the advisory locks of a slot."""
    return f"{domain}/{slot}"


class ListenerSession:
    """Implements flow.ports.Listener. Created by listener_session().

    Args:
        connection: The session.
        settings: The deadline, and the interval of the catch-up poll.
        domain: The domain of the worker.
        ended: Set when the session ends.

    Attributes:
        slot: The slot of this consumer; None: it has none, so it cannot arm and has to poll.
    """

    def __init__(self, connection: Connection, settings: Settings, domain: str, ended: WakeEvent) -> None:
        self._connection = connection
        self._settings = settings
        self._domain = domain
        self._ended = ended
        # Two tasks use the session: one calls arm() and disarm(), the other one runs watch().
        self._session_lock = anyio.Lock()
        self.slot: int | None = None

    async def _ask(self, statement: str, *args: Any) -> Any:
        async with self._session_lock:
            try:
                return await ask(self._connection, self._settings.deadline, statement, *args)
            except SessionLost:
                # If a session ends during a statement, the driver does not always call the termination listener.
                self._ended.set()
                raise
            except Refused as no:
                # For example an exhausted lock table, or a statement_timeout. Such an error ends only this session,
                # not the work of the consumer.
                self._connection.terminate()
                raise SessionLost(no.message, no.hint) from no

    async def claim_slot(self) -> None:
        """Take a free slot. Without one the consumer cannot arm; it polls, so no event is lost."""
        for slot in LISTENER_SLOTS:
            if await self._ask(_TRY_LOCK, SLOT_KEY, slot_name(self._domain, slot)):
                self.slot = slot
                return

    async def arm(self) -> bool:
        """Take the armed lock, which tells all producers to send NOTIFY.

        Returns:
            False if a producer that sends no NOTIFY still holds the lock, or if the consumer has no slot.
        """
        if self.slot is None:
            return False
        return bool(await self._ask(_TRY_LOCK, BELL_KEY, slot_name(self._domain, self.slot)))

    async def disarm(self) -> None:
        """Release the armed lock, so that producers send no NOTIFY."""
        if self.slot is not None:
            await self._ask("select pg_advisory_unlock($1, hashtext($2))", BELL_KEY, slot_name(self._domain, self.slot))

    async def watch(self) -> None:
        """Check every two catch-up polls that the session is alive and listening; claim a slot if needed.

        Raises:
            SessionLost: The session was lost, or does not listen any more. The method never returns.
        """
        while not await self._ended.wait(2 * self._settings.catch_up):
            if not await self._ask(query("is_listening"), CHANNEL):
                raise SessionLost("the listener session does not listen any more")
            if self.slot is None:
                await self.claim_slot()
        raise SessionLost("the connection of the listener session was closed")


@asynccontextmanager
async def listener_session(
    settings: Settings, earlier: EarlierSessions, wake: Callable[[bool], None]
) -> AsyncIterator[ListenerSession]:
    """Open the listener session and test that it receives notifications.

    Args:
        settings: The connection string, the deadlines and the interval of the catch-up poll.
        earlier: The earlier sessions of the consumer.
        wake: Called at each notification, with True if its payload is empty; and at the end of the session, with True.

    Raises:
        ListenUnavailable: LISTEN is switched off, or does not work on this connection, for example behind a pooler in
            transaction mode.
        SessionLost: No session could be opened.
    """
    if not settings.listen:
        raise ListenUnavailable("LISTEN is switched off (--no-listen)")
    dsn = settings.listen_dsn or settings.dsn
    # The session timeout must be longer than the interval of the checks of watch(). A frozen process loses its slot
    # after this time.
    idle = max(settings.session_timeout, 3 * settings.catch_up)
    name = f"iu-listen listener {settings.worker}"
    # If the connection breaks between the two messages of a statement, a transaction stays open on the server. Neither
    # the idle timeout nor the statement timeout ends it, and the server cannot free its notification queue. Therefore
    # the session has a transaction timeout.
    ended, token, token_arrived = WakeEvent(), secrets.token_hex(8), WakeEvent()

    domain = ""

    def on_notification(_connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == token:
            token_arrived.set()
        # Every consumer hears the channel: notifications of other domains and tests of other consumers wake none.
        if payload in ("", domain):
            wake(payload == "")

    def on_end(_connection: object) -> None:
        ended.set()
        token_arrived.set()
        wake(True)

    async with replacing_earlier(
        earlier, "listener", dsn, name=name, deadline=settings.deadline, answer_timeout=settings.deadline,
        idle_timeout=idle, read_only=True, transaction_timeout=2 * settings.deadline,
    ) as connection:  # fmt: skip
        connection.add_termination_listener(on_end)
        try:
            with translate_driver_errors(), anyio.fail_after(settings.deadline):
                await connection.add_listener(CHANNEL, on_notification)
        except Refused as no:
            raise ListenUnavailable(f"LISTEN failed: {no.message}") from no
        domain = await ask(connection, settings.deadline, query("worker_domain"), settings.worker) or ""
        await _test_listen(connection, settings, earlier, token, token_arrived)
        listener = ListenerSession(connection, settings, domain, ended)
        await listener.claim_slot()
        yield listener


async def _test_listen(
    connection: Connection, settings: Settings, earlier: EarlierSessions, token: str, token_arrived: WakeEvent
) -> None:
    """Send a token from a second session: only this test detects a transaction pooler.

    pg_listening_channels() does not detect one: behind a pooler with little traffic it returns the channel, although
    notifications are lost.

    Raises:
        ListenUnavailable: The token did not arrive within LISTEN_TEST_TIMEOUT.
        SessionLost: One of the two sessions could not be opened or was lost.
    """
    async with replacing_earlier(
        earlier, "listen-test", settings.listen_dsn or settings.dsn, name="iu-listen listen-test",
        deadline=settings.deadline, answer_timeout=settings.deadline,
    ) as other:  # fmt: skip
        # pg_notification_queue_usage() is called for its side effect: it frees the part of the queue that all listeners
        # have read. Without that call a full queue stays full, even after the listener that blocked it is gone.
        statement = "select pg_notification_queue_usage(), pg_notify($1, $2)"
        await ask(other, settings.deadline, statement, CHANNEL, token)
        arrived = await token_arrived.wait(LISTEN_TEST_TIMEOUT)
        # A lost session, or a network path that drops packets, also receives no token, but it is not a pooler. This
        # query raises SessionLost in that case.
        await ask(connection, settings.deadline, query("backend_pid"))
        if not arrived:
            raise ListenUnavailable(
                "a notification sent from another session did not arrive, because the connection goes through a pooler "
                "in transaction mode; give a direct connection with --listen-dsn"
            )
