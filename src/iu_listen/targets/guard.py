"""Decides to which addresses a target may connect: parses URLs, resolves hosts, and checks the resolved addresses.

A route is a row that many roles may write. An attacker could use its address to reach a service that only the consumer
can reach, for example in the internal network or the metadata service of a cloud (server-side request forgery).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import anyio

from iu_listen.model.delivery import Unavailable
from iu_listen.model.errors import ConfigurationError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: The networks that are not public, each with its description; the first network that contains an address counts. The
#: table of the standard library is not used: it differs between versions, and treats addresses that lead to IPv4
#: addresses (NAT64, 6to4) as public.
NOT_PUBLIC: Final = [(ipaddress.ip_network(network), what) for network, what in (
    ("0.0.0.0/8", "this host"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "of a carrier or a cloud"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "of a cloud"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.0.2.0/24", "for documentation"),
    ("192.88.99.0/24", "a 6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "for benchmarks"),
    ("198.51.100.0/24", "for documentation"),
    ("203.0.113.0/24", "for documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "this host"),
    ("::1/128", "loopback"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "NAT64"),
    ("2001::/23", "a tunnel, or reserved"),
    ("2001:db8::/32", "for documentation"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "for documentation"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
    # All public IPv6 addresses are in 2000::/3.
    ("::/3", "reserved"),
    ("4000::/2", "reserved"),
    ("8000::/1", "reserved"),
)]  # fmt: skip

_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9_.\-]*[a-z0-9_])?")
#: The characters of RFC 3986. Programs differ in how they parse a URL with other characters.
_URL: Final = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class HttpOrigin:
    """The parts of a URL.

    Attributes:
        scheme: ``http`` or ``https``.
        host: Host in lower case, without a final dot and without the brackets of IPv6.
        port: Port, from 1.
        path: Path with query; it begins with ``/``.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> HttpOrigin:
        """Parse a URL.

        Raises:
            ValueError: The URL is not supported. The text has the reason, but no part of the URL.
        """
        if not _URL.fullmatch(text):
            raise ValueError(
                "invalid address: expected a URL in ASCII; percent-encode other characters, and write hosts as xn--"
            )
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise ValueError("invalid address: host or port cannot be parsed") from None
        host = (parts.hostname or "").rstrip(".")
        if "@" in parts.netloc:
            raise ValueError("an address must not contain a user or a password: many roles can read routes")
        if parts.scheme not in _PORTS or not host or port == 0:
            raise ValueError("invalid address; expected https://host/path")
        if not _HOST.fullmatch(host) and literal(host) is None:
            raise ValueError("invalid address: the host is neither a name nor an IP address")
        if parts.fragment:
            raise ValueError("an address must not contain a fragment (#)")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.scheme, host, port or _PORTS[parts.scheme], path)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """Host and port, as in a URL and in the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Guard:
    """The hosts and networks that may be reached although they are not public.

    Attributes:
        hosts: Names of hosts, which may have any address.
        networks: Networks that any host may be in.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def allowing(cls, entries: Iterable[str]) -> Guard:
        """The guard that allows these host names and networks (CIDR, or one address).

        Raises:
            ConfigurationError: An entry is neither a host name nor a network.
        """
        hosts, networks = set(), []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                name = entry.lower().rstrip(".")
                if not _HOST.fullmatch(name):
                    raise ConfigurationError(
                        f"IU_LISTEN_ALLOW_PRIVATE contains {entry!a}",
                        "Expected: CIDRs and host names, separated by commas.",
                    ) from None
                hosts.add(name)
        return cls(frozenset(hosts), tuple(networks))

    def trusts(self, host: str) -> bool:
        """Whether this host is allowed by its name, or by the address that is written as its name."""
        if host in self.hosts:
            return True
        ip = literal(host)
        return ip is not None and any(ip in network for network in self.networks)

    def refusal(self, host: str, address: str) -> str:
        """The reason for refusing this address of a host, for example ``loopback``; empty: the address is allowed."""
        ip = literal(address)
        if ip is None:
            return "no address"
        if self.trusts(host) or self.trusts(address):
            return ""
        return next((what for network, what in NOT_PUBLIC if ip in network), "")


def literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address if the host is written as one; None: the host is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


#: A function that resolves host and port to IP addresses.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve(host: str, port: int) -> Sequence[str]:
    """The IP addresses of a host, from the resolver of the operating system.

    Raises:
        OSError: The host has no address.
        UnicodeError: The host is not a valid name.
    """
    return [str(found[4][0]) for found in await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def allowed(guard: Guard, host: str, port: int, resolve: Resolve = resolve) -> list[str]:
    """The addresses of a host to which a connection is allowed.

    Raises:
        Unavailable: The host has no address (``dns``), or none that is allowed (``address_refused``).
    """
    try:
        addresses = list(dict.fromkeys(await resolve(host, port)))
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"the host {host} cannot be resolved: {type(error).__name__}", code="dns") from None
    refused = {address: guard.refusal(host, address) for address in addresses}
    found = [address for address in addresses if not refused[address]]
    if not found:
        what = ", ".join(f"{address} ({why})" for address, why in refused.items()) or "nothing"
        raise Unavailable(
            f"{host} resolves to {what}, which IU_LISTEN_ALLOW_PRIVATE does not allow", code="address_refused"
        )
    return found


class HostNotAllowed(ConfigurationError):
    """The configuration of this process does not allow the host; that of another process may."""


def check_host(guard: Guard, host: str) -> None:
    """Refuse a host that is written as an IP address, if that address is not allowed.

    Raises:
        HostNotAllowed: The address is not allowed.
    """
    refused = guard.refusal(host, host)
    if refused and refused != "no address":
        raise HostNotAllowed(
            f"{host} is {refused}, which IU_LISTEN_ALLOW_PRIVATE does not allow",
            f"To allow it, {allow_hint(host)}",
        )


def allow_hint(host: str) -> str:
    """The hint that tells how to allow a host that is not public."""
    return f"start the consumer with IU_LISTEN_ALLOW_PRIVATE={host}"
