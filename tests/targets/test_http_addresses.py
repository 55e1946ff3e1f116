"""The addresses to which an HTTP target connects, and those that it refuses."""

from __future__ import annotations

import pytest

from iu_listen.model.delivery import Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secrets
from iu_listen.targets import http
from iu_listen.targets.guard import Guard
from iu_listen.targets.http.options import read_options
from iu_listen.targets.http.target import HttpTarget
from targets.http_receivers import KEYS, SECRETS, delivery, raw, response

pytestmark = pytest.mark.asyncio


#: Addresses that are not public: one or more of every range, with the name of the range.
PRIVATE = {
    "this host": ["0.0.0.0", "0.1.2.3", "::"],
    "private": ["10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd00:ec2::254"],
    "of a carrier or a cloud": ["100.64.0.1", "100.100.100.200"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "of a cloud": ["168.63.129.16"],
    "link-local": ["169.254.169.254", "fe80::1", "fe80::1%eth0", "febf::1"],
    "for documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "a 6to4 relay": ["192.88.99.1"],
    "for benchmarks": ["198.18.0.1"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1"],
    "reserved": ["192.0.0.192", "240.0.0.1", "255.255.255.255", "::7f00:1", "fec0::1", "100::1", "5f00::1"],
    "IPv4-mapped": ["::ffff:127.0.0.1", "::ffff:8.8.8.8"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1"],
    "a tunnel, or reserved": ["2001::1"],
    "6to4": ["2002:7f00:1::"],
}


@pytest.mark.parametrize(("what", "address"), [(what, each) for what, found in PRIVATE.items() for each in found])
async def test_addresses_of_our_own_network_are_refused(what, address):
    """A name that resolves to an address that is not public gets no connection; the outcome is an outage with the
    reason. Fails when: the row of the range is taken out of NOT_PUBLIC, or addresses are not checked.
    """

    async def leads_there(host, port):
        return [address]

    target = HttpTarget(read_options("https://hook.example/", {}, SECRETS), leads_there)
    with pytest.raises(Unavailable) as error:
        await target.deliver(delivery(deadline=1.0))
    assert error.value.code == "address_refused"
    assert f"hook.example resolves to {address} ({what})," in error.value.reason


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "100.128.0.1", "172.32.0.1", "192.0.1.1", "2606:4700::1111", "2a00:1450::1"]
)
async def test_addresses_of_the_internet_are_not(address):
    """Public addresses need no permission.
    Fails when: a network in NOT_PUBLIC is too wide.
    """
    assert Guard().refusal("hook.example", address) == ""


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost", "localhost."])
async def test_odd_spellings_of_loopback_are_refused(host):
    """For any notation of a loopback address, the resolved address is checked.
    Fails when: the text of the host is checked instead of its address.
    """
    target = http.open(f"https://{host}/", {}, Secrets(KEYS))
    with pytest.raises(Unavailable) as error:
        await target.deliver(delivery(deadline=5))
    assert error.value.code in {"address_refused", "dns"}
    if error.value.code == "address_refused":
        assert "loopback" in error.value.reason


async def test_what_is_allowed_is_allowed_and_no_more():
    """A permitted CIDR allows its addresses to every name; a permitted name may resolve to any address.
    Fails when: the guard allows an address that is not permitted.
    """
    guard = Guard.allowing(["10.0.0.0/8", "fd00::1", "Intern.Example."])
    assert guard.refusal("a.example", "10.9.9.9") == ""
    assert guard.refusal("a.example", "fd00::1") == ""
    assert guard.refusal("a.example", "fd00::2") == "private"
    assert guard.refusal("a.example", "11.0.0.1") == ""
    assert guard.refusal("a.example", "127.0.0.1") == "loopback"
    assert guard.refusal("a.example", "::ffff:10.0.0.1") == "IPv4-mapped"
    assert guard.refusal("intern.example", "127.0.0.1") == ""
    assert guard.refusal("x.intern.example", "127.0.0.1") == "loopback"


async def test_a_name_that_is_bound_anew_leads_nowhere(certificates):
    """Each connection resolves the name once and connects to exactly the address that was checked; the certificate is
    verified for the name. If the name resolves to another address later, the next connection is refused.
    Fails when: the name is resolved again to connect, or its address is checked for the first connection only.
    """
    leads = iter([["127.0.0.2", "127.0.0.1"], ["127.0.0.2"]])
    asked = []

    async def rebound(host, port):
        asked.append(host)
        return next(leads)

    async def once(reader, writer):
        writer.write(response(204))
        await writer.drain()

    async with (
        raw(once, certificates.good) as server,
        raw(response(204), certificates.good, "127.0.0.2", server.port) as trap,
    ):
        options = {"ca": str(certificates.ca)}
        address = f"https://hook.example:{server.port}/"
        target = HttpTarget(read_options(address, options, Secrets(KEYS, allow_private=("127.0.0.1",))), rebound)
        await target.deliver(delivery())
        await server.left()
        with pytest.raises(Unavailable) as error:
            await target.deliver(delivery())
        assert error.value.code == "address_refused"
        assert (server.connections, trap.connections) == (1, 0)
        assert asked == ["hook.example", "hook.example"]
        assert f"host: hook.example:{server.port}\r\n".encode() in server.requests[0].lower()
        await target.aclose()


async def test_the_next_address_is_tried():
    """If the first address of a host does not answer, the next address is tried.
    Fails when: only the first address is tried.
    """

    async def two(host, port):
        return ["127.0.0.3", "127.0.0.1"]

    async with raw(response(204)) as server:
        options = read_options(f"http://localhost:{server.port}/", {}, SECRETS)
        target = HttpTarget(options, two)
        await target.deliver(delivery())
        await target.aclose()
        assert server.connections == 1


async def test_a_literal_address_of_our_own_is_refused_before_anything_is_sent():
    """A literal address that is not public is refused as a configuration error.
    Fails when: the address of a route is not checked when its target is made.
    """
    with pytest.raises(ConfigurationError, match=r"169\.254\.169\.254 is link-local"):
        http.open("https://169.254.169.254/latest/meta-data/", {}, SECRETS)
