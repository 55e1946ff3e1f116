"""Opens a session with the first server of an address that accepts it; each server has its own time limit."""

from __future__ import annotations

import random
import socket
import ssl
from typing import Any, Final

import anyio
import asyncpg

from iu_listen.model.address import ConnectionAddress

#: Errors after which the next server is tried: this one is unreachable, does not answer, is starting, has no free
#: connection, or does not have the state that target_session_attrs asks for.
TRY_NEXT_SERVER: Final = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.TargetServerAttributeNotMatched,
)
#: The values of target_session_attrs that are tried one after another: prefer-standby means a standby, else any server.
ATTRIBUTE_FALLBACKS: Final = {"prefer-standby": ("standby", "any")}
#: TCP keepalive options by parameter of the address, each with its default: asyncpg sets none of them (asyncpg#606).
#: Idle time and interval are in seconds, TCP_USER_TIMEOUT is in milliseconds.
KEEPALIVES: Final = {
    "keepalives_idle": ("TCP_KEEPIDLE", 5),
    "keepalives_interval": ("TCP_KEEPINTVL", 3),
    "keepalives_count": ("TCP_KEEPCNT", 3),
    "tcp_user_timeout": ("TCP_USER_TIMEOUT", 10_000),
}


class Unreachable(OSError):
    """None of several servers accepted the session; the text has the reason of each server."""


async def dial(address: ConnectionAddress, *, deadline: float, **how: Any) -> Any:
    """Open a session with a server of the address.

    Args:
        address: The address, with one server or several.
        deadline: Longest wait for all servers together, in seconds. Each server gets an equal share of the remaining
            time.
        how: Arguments for asyncpg.connect().

    Raises:
        Unreachable: None of several servers accepted the session.
        TimeoutError: None of several servers answered in time.
        Exception: The error of the driver, if there is one server, or if an error is not one of TRY_NEXT_SERVER.
    """
    hosts: list[tuple[str, int] | None] = list(address.hosts) or [None]
    if address.reach.get("load_balance_hosts") == "random":
        random.shuffle(hosts)
    wanted = address.reach.get("target_session_attrs", "any")
    # Without a server in the address the driver tries several local sockets, which all answer at once.
    tries = [(attribute, host) for attribute in ATTRIBUTE_FALLBACKS.get(wanted, (wanted,)) for host in hosts]
    failures: list[tuple[str, Exception]] = []
    until = anyio.current_time() + deadline
    for number, (attribute, host) in enumerate(tries):
        share = (until - anyio.current_time()) / (len(tries) - number)
        seconds = int(address.reach.get("connect_timeout", "0"))
        # As in libpq: connect_timeout below 2 s counts as 2 s, and 0 or less means no limit.
        share = min(share, max(seconds, 2)) if seconds > 0 else share
        try:
            with anyio.fail_after(share):
                # Typed as Any, because the driver's type for target_session_attrs has no public name.
                more: dict[str, Any] = {**how, "target_session_attrs": attribute, "timeout": share}
                session = await asyncpg.connect(address.uri(host), **more)
        except TRY_NEXT_SERVER as error:
            alone = len(tries) == 1 and not isinstance(error, asyncpg.TargetServerAttributeNotMatched)
            if alone or isinstance(error, ssl.SSLCertVerificationError):
                raise
            failures.append((f"{host[0]}:{host[1]}" if host else "the local sockets", error))
            continue
        _set_keepalive(session, address)
        return session
    why = "; ".join(f"{where}: {_reason(error)}" for where, error in failures)
    raise (Unreachable if not all(isinstance(e, TimeoutError) for _, e in failures) else TimeoutError)(
        why
    ) from failures[-1][1]


def _reason(error: Exception) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "the server does not match target_session_attrs"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error).partition("\n")[0] or type(error).__name__


def _set_keepalive(session: Any, address: ConnectionAddress) -> None:
    """Set TCP keepalive, so that the kernel detects a dead peer."""
    sock = session._transport.get_extra_info("socket")  # noqa: SLF001 there is no public way
    if sock is None or sock.family == socket.AF_UNIX or address.reach.get("keepalives") == "0":
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for parameter, (option, usual) in KEEPALIVES.items():
        chosen = int(address.reach.get(parameter, usual))
        # TCP_USER_TIMEOUT exists on Linux only; 0 keeps the value of the operating system.
        if hasattr(socket, option) and chosen > 0:
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), chosen)
