"""The trace export after a restore: it is refused, begun anew, and no span that was not exported is lost."""

from __future__ import annotations

from datetime import datetime

import pytest

from history.conftest import Pair
from history.past import reanchor
from iu_listen.app import PostgresSessions
from iu_listen.install import migrate
from iu_listen.model.errors import Refused
from iu_listen.model.settings import Settings
from iu_listen.postgres.session import session
from iu_listen.postgres.trace import TraceSession
from support import apply_package, connected, drain, insert_event, open_gate

pytestmark = pytest.mark.asyncio


async def exported(source: TraceSession, pages: int | None = None) -> set[str]:
    """Export all pending attempts, or so many pages of two; return the ids of their spans."""
    found: set[str] = set()
    while (place := await source.tick()) is not None and pages != 0:
        page = await source.page(place, 2)
        found |= {span.span_id for span in page.spans if span.name.startswith("process")}
        await source.accepted(page, 0)
        pages = pages - 1 if pages else None
    return found


async def spans(dsn: str) -> set[str]:
    async with connected(dsn) as connection:
        return {row["span_id"] for row in await connection.fetch("select span_id from v_iu_route_attempt")}


async def test_a_reanchor_reports_since_when_spans_are_missing(pair: Pair):
    """The trace export refuses a restored database; a reanchor begins it anew and gives the time
    since which spans are missing.

    Fails when: the cursor of the trace export is left out of the reanchor, or stamps of the other history, which lie
    beyond the transaction ids of this cluster, count as new.
    """
    database = pair.new()
    origin = pair.source.dsn(database)
    async with session(origin, name="tests") as connection:
        await migrate.apply_base(connection)
    await apply_package(origin)
    async with (
        connected(origin) as worker,
        PostgresSessions(Settings.load({}, {"dsn": origin})).trace_source() as source,
    ):
        await source.take_lease()
        for _ in range(3):
            await insert_event(worker)
        await drain(worker)
        sent = await exported(source)
        for _ in range(5):
            await insert_event(worker)
        await drain(worker)
        sent |= await exported(source, pages=1)
        assert len(sent) == 5

    dsn = pair.travel(database)
    missing = await spans(dsn) - sent
    assert len(missing) == 3
    async with connected(dsn) as worker, PostgresSessions(Settings.load({}, {"dsn": dsn})).trace_source() as source:
        await source.take_lease()
        with pytest.raises(Refused, match="foreign_history"):
            await source.tick()
        await open_gate(dsn, "false")
        since = datetime.fromisoformat((await reanchor(worker))["traces_since"])
        assert await source.tick() is None

        place = await source.place_since(since)
        again = set()
        while True:
            page = await source.page(place, 2)
            again |= {span.span_id for span in page.spans}
            if page.last:
                break
            place = page.place
        assert missing <= again

        await open_gate(dsn)
        await insert_event(worker)
        before = await spans(dsn)
        await drain(worker)
        assert await exported(source) == await spans(dsn) - before
        assert await source.tick() is None
