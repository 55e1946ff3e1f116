"""The process decides which variables, files and private hosts a route may use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import trustme

from iu_listen.model.delivery import Unavailable
from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import MAX_SECRET_BYTES, Secrets, entries
from iu_listen.targets import Targets, nats
from targets.brokers import CANARY, delivery

pytestmark = pytest.mark.asyncio

ENVIRON = {"PGPASSWORD": "canary", "CRM_TOKEN": "crm", "CRMX": "other", "IU_LISTEN_DSN": "postgresql://x:canary@h/d"}


async def test_a_route_reads_no_variable_that_is_not_allowed():
    """Names and prefixes of IU_LISTEN_SECRETS are read, and no other variable; the refusal shows no value.

    Fails when: a route may name any variable of the process as a secret.
    """
    secrets = Secrets(ENVIRON, entries("CRM_*, CRMX"))
    assert secrets.get("env:CRM_TOKEN").reveal() == "crm"
    assert secrets.get("env:CRMX").reveal() == "other"
    for name in "PGPASSWORD", "IU_LISTEN_DSN", "CRM":
        with pytest.raises(ConfigurationError) as refused:
            secrets.get(f"env:{name}")
        assert f"is not allowed to read the variable {name}" in refused.value.message
        assert "canary" not in str(refused.value) + refused.value.hint
    with pytest.raises(ConfigurationError, match="not allowed to read"):
        Secrets(ENVIRON, ()).get("env:CRM_TOKEN")


async def test_a_route_reads_no_file_outside_of_the_directory(tmp_path):
    """Files of the directory are read, also by links within it as Kubernetes makes them; a link out of it is refused.

    Fails when: the path is compared without resolving links.
    """
    allowed, outside = tmp_path / "secrets", tmp_path / "other"
    (allowed / "..data").mkdir(parents=True)
    outside.write_text("canary")
    (allowed / "..data" / "key").write_text(" value\n")
    (allowed / "key").symlink_to("..data/key")
    (allowed / "out").symlink_to(outside)
    secrets = Secrets({}, (str(allowed),))

    assert secrets.get(f"file:{allowed}/key").reveal() == "value"
    for path in outside, allowed / "out", allowed / ".." / "other", "/proc/self/environ", "/etc/passwd":
        with pytest.raises(ConfigurationError, match="is not allowed to read the file"):
            secrets.get(f"file:{path}")


async def test_only_a_small_regular_file_is_a_secret(tmp_path):
    """A pipe, a device, a directory and a large file are refused at once, without blocking the event loop.

    Fails when: the file is opened and read without checks.
    """
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    (tmp_path / "zero").symlink_to("/dev/zero")
    secrets = Secrets({}, None)
    with anyio.fail_after(2):
        for name, why in (
            ("pipe", "not a regular file"),
            ("zero", "not a regular file"),
            ("large", "larger"),
            ("", "IsADirectory"),
        ):
            with pytest.raises(ConfigurationError, match=why):
                secrets.get(f"file:{tmp_path}/{name}")
    for address in "nats://a.example/x", "rediss://a.example/0?stream=x", "kafka://a.example/x":
        with pytest.raises(ConfigurationError, match="option ca cannot be read"):
            Targets().find("external_endpoint", address, {"ca": "/dev/zero"})


@asynccontextmanager
async def _trap() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on loopback that records the data that it receives."""
    got: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(b"")
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","proto":1,"max_payload":1048576,"headers":true}\r\n')
        while data := await reader.read(4096):
            got[-1] += data
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], got


@pytest.mark.parametrize("scheme", ["nats", "redis", "kafka", "https"])
async def test_no_target_leads_inwards(scheme):
    """A literal loopback address is refused when it is read, and a name that resolves to loopback when it is connected.

    Fails when: only HTTP has the guard, or the host names that a broker announces are not checked.
    """
    targets = Targets()
    query = "?stream=x" if scheme == "redis" else ""
    async with _trap() as (port, got):
        for host in "127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1":
            with pytest.raises(ConfigurationError, match="IU_LISTEN_ALLOW_PRIVATE does not allow"):
                targets.find("external_endpoint", f"{scheme}://{host}:{port}/1{query}", {})
        target = targets.find("external_endpoint", f"{scheme}://localhost:{port}/1{query}", {})
        with pytest.raises(Unavailable) as refused:
            await target.deliver(delivery())
        assert refused.value.code == "address_refused"
        assert got == []
    await targets.aclose()


async def test_what_the_process_allows_is_reached():
    """IU_LISTEN_ALLOW_PRIVATE permits a connection to loopback. Fails when: the guard refuses every address."""
    async with _trap() as (port, got):
        targets = Targets(allow_private="localhost")
        target = targets.find("external_endpoint", f"nats://localhost:{port}/x", {"connect_timeout": 0.3})
        with pytest.raises(Unavailable):
            await target.deliver(delivery())
        assert got
    with pytest.raises(ConfigurationError, match="IU_LISTEN_ALLOW_PRIVATE contains"):
        Targets(allow_private="local host")


async def test_a_nats_server_without_tls_gets_no_password(tmp_path):
    """If a route gives a CA, a server that offers no TLS receives nothing, for any scheme.

    Fails when: the option ca has no effect with the scheme nats.
    """
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca)
    options = {"user": "iu", "password": "env:PASSWORD", "ca": str(ca)}
    secrets = Secrets({"PASSWORD": CANARY}, allow_private=("127.0.0.1",))
    async with _trap() as (port, got):
        target = nats.open(f"nats://127.0.0.1:{port}/x", options, secrets)
        with pytest.raises(Unavailable) as refused:
            await target.deliver(delivery())
        await target.aclose()
        assert refused.value.code == "tls"
        assert got == [b""]
