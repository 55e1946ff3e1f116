"""A consumer inside a program: it reports by logging, and the program can wait until it works."""

from __future__ import annotations

import logging

import anyio
import pytest

from iu_listen import Consumer, Settings
from iu_listen.model.errors import ConfigurationError, DatabaseUnreachable
from support import connected, insert_event, wait_until

pytestmark = pytest.mark.asyncio

NOWHERE = "postgresql://ada:hunter2@127.0.0.1:1/iu"


def _said(caplog, level: int) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.name == "iu_listen" and r.levelno == level)


async def test_a_wrong_database_is_logged(applied, caplog):
    """If the database cannot be reached or does not exist, the logger iu_listen logs a warning.

    Fails when: a consumer without observers logs nothing.
    """
    caplog.set_level(logging.INFO, "iu_listen")
    for dsn, words in ((NOWHERE, "cannot connect"), (applied.dsn.replace("/iu_test", "/no_iu_test"), "does not exist")):
        caplog.clear()
        async with Consumer(Settings(dsn=dsn)):
            await wait_until(lambda words=words: _soon(words in _said(caplog, logging.WARNING)), "it is said")
        assert "hunter2" not in caplog.text


async def _soon(answer: bool) -> bool:
    return answer


async def test_work_and_dead_letters_are_logged(live, caplog):
    """Work is logged as INFO, dead letters as ERROR, with the fields in `extra` for JSON formatters."""
    caplog.set_level(logging.INFO, "iu_listen")
    async with connected(live.dsn) as admin:
        await admin.execute("alter table iu_route_attempt add constraint poison check (status <> 'dry_run') not valid")
        async with Consumer(Settings(dsn=live.dsn), wait=20):
            assert "lease taken worker=iu_outbound_default" in _said(caplog, logging.INFO)
            await insert_event(admin)
            await wait_until(lambda: _soon("events became dead letters" in _said(caplog, logging.ERROR)), "it is said")
    (record,) = [r for r in caplog.records if r.getMessage().startswith("events became dead letters")]
    assert record.iu_listen["count"] == 1


async def test_observers_replace_the_log(live, caplog):
    """With observers of the program's own, or with an empty list of them, nothing is logged."""
    caplog.set_level(logging.INFO, "iu_listen")
    async with Consumer(Settings(dsn=live.dsn), observers=(), wait=20):
        pass
    assert not [r for r in caplog.records if r.name == "iu_listen"]


async def test_entering_waits_for_the_lease_or_standby(live):
    """With wait= the block begins when the consumer has the lease or is standby."""
    async with Consumer(Settings(dsn=live.dsn), wait=20):
        with anyio.fail_after(20):
            async with Consumer(Settings(dsn=live.dsn), wait=20) as second:
                await second.ready(20)


async def test_entering_raises_a_permanent_error(applied, substrate):
    """A permanent error is raised at once, a temporary one after the wait, and no task is left running.

    Fails when: entering the block does not check, or leaves its tasks running.
    """
    with anyio.fail_after(15):
        with pytest.raises(ConfigurationError, match="package is not applied"):
            async with Consumer(Settings(dsn=substrate.dsn), wait=600):
                pytest.fail("it was entered")
        with pytest.raises(ConfigurationError, match="nobodys is not registered"):
            async with Consumer(Settings(dsn=applied.dsn, worker="nobodys"), wait=600):
                pytest.fail("it was entered")
        with pytest.raises(DatabaseUnreachable, match=r"does not work after 0\.5 s: cannot connect") as raised:
            async with Consumer(Settings(dsn=NOWHERE), wait=0.5):
                pytest.fail("it was entered")
    assert "hunter2" not in str(raised.value)
