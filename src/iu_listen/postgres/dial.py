"""A session with the first server of an address that takes it, each server with a time of its own."""

from __future__ import annotations

import random
import socket
import ssl
from typing import Any, Final

import anyio
import asyncpg

from iu_listen.model.address import Address

#: Errors after which the next server is asked: this one is not there, silent, starting, full, or of the wrong kind.
NEXT: Final = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.TargetServerAttributeNotMatched,
)
#: What prefer-standby means: a standby of all servers, else any of them.
PASSES: Final = {"prefer-standby": ("standby", "any")}
#: How the kernel finds a dead peer, where the address says nothing else: asyncpg leaves this off (asyncpg#606).
KEEPALIVES: Final = {
    "keepalives_idle": ("TCP_KEEPIDLE", 5),
    "keepalives_interval": ("TCP_KEEPINTVL", 3),
    "keepalives_count": ("TCP_KEEPCNT", 3),
    "tcp_user_timeout": ("TCP_USER_TIMEOUT", 10_000),
}


class Unreachable(OSError):
    """No server of several took us; its text says why of each."""


async def dial(address: Address, *, deadline: float, **how: Any) -> Any:
    """A session with a server of the address.

    Args:
        address: Where.
        deadline: Longest wait for all of them, in seconds. Every server gets an equal share of what is left.
        how: For asyncpg.connect().

    Raises:
        Unreachable: none of several servers took us.
        Exception: what the driver raised, where there is one server, or where a server refused us for good.
    """
    hosts: list[tuple[str, int] | None] = list(address.hosts) or [None]
    if address.reach.get("load_balance_hosts") == "random":
        random.shuffle(hosts)
    wanted = address.reach.get("target_session_attrs", "any")
    # A server without a name is looked for by the driver in several places, each of which answers at once.
    tries = [(attribute, host) for attribute in PASSES.get(wanted, (wanted,)) for host in hosts]
    said: list[tuple[str, Exception]] = []
    until = anyio.current_time() + deadline
    for number, (attribute, host) in enumerate(tries):
        share = (until - anyio.current_time()) / (len(tries) - number)
        seconds = int(address.reach.get("connect_timeout", "0"))
        # As in libpq: less than 2 s is taken for 2 s, and 0 or less for no limit of its own.
        share = min(share, max(seconds, 2)) if seconds > 0 else share
        try:
            with anyio.fail_after(share):
                # The driver's type of the attribute has no public name.
                more: dict[str, Any] = {**how, "target_session_attrs": attribute, "timeout": share}
                session = await asyncpg.connect(address.uri(host), **more)
        except NEXT as error:
            alone = len(tries) == 1 and not isinstance(error, asyncpg.TargetServerAttributeNotMatched)
            if alone or isinstance(error, ssl.SSLCertVerificationError):
                raise
            said.append((f"{host[0]}:{host[1]}" if host else "this machine", error))
            continue
        _watch_the_path(session, address)
        return session
    why = "; ".join(f"{where}: {_words(error)}" for where, error in said)
    raise (Unreachable if not all(isinstance(e, TimeoutError) for _, e in said) else TimeoutError)(why) from said[-1][1]


def _words(error: Exception) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "not of the kind that target_session_attrs asks for"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error).partition("\n")[0] or type(error).__name__


def _watch_the_path(session: Any, address: Address) -> None:
    """Let the kernel find a dead peer."""
    sock = session._transport.get_extra_info("socket")  # noqa: SLF001 there is no public way
    if sock is None or sock.family == socket.AF_UNIX or address.reach.get("keepalives") == "0":
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for parameter, (option, usual) in KEEPALIVES.items():
        chosen = int(address.reach.get(parameter, usual))
        # TCP_USER_TIMEOUT is Linux only; 0 leaves the system's own value.
        if hasattr(socket, option) and chosen > 0:
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), chosen)
