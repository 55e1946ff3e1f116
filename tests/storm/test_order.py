"""An ordered route while the consumer is killed: each subject in the order of its commits, one call at a time.

ORDER_EVENTS and ORDER_SUBJECTS make the test longer: `make kills`.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import defaultdict
from uuid import UUID, uuid4

import pytest

from postgres.delivery_helpers import add_route, attempts, wait_until_settled
from storm.call_log import CallLog
from storm.environment import Consumer
from support import connected

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

EVENTS, SUBJECTS = int(os.environ.get("ORDER_EVENTS", "4000")), int(os.environ.get("ORDER_SUBJECTS", "100"))
KILLS = 5
SENT = "select (select count(*) from iu_route_attempt where status = 'sent')"


@pytest.mark.parametrize("server", ["pg18"], indirect=True)
async def test_subjects_keep_their_order_despite_failures_and_kills(live, tmp_path):
    """Events of many subjects, one in 50 failing once, the consumer killed five times: in order, one at a time, all
    there.

    Fails when: the take does not select the first event of a subject, or an in-flight delivery is not taken again after
    a kill.
    """
    rng = random.Random(5)
    subjects = [uuid4() for _ in range(SUBJECTS)]
    written: dict[str, list[UUID]] = defaultdict(list)
    consumer = Consumer("consumer", live.dsn, tmp_path)
    async with connected(live.dsn) as connection:
        await connection.execute("update dot_config set value = 'true' where key = 'iu_core.delivery_enabled'")
        await add_route(connection, "storm", order="subject", concurrency=50, attempts=1000, backoff=0.01)
        for _ in range(EVENTS // 100):
            chosen = rng.choices(subjects, k=100)
            rows = await connection.fetch(
                """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, event_subject_ref)
                   select 'iu', 'version_applied', 'update', 'immediate', s from unnest($1::uuid[]) with ordinality t(s, n)
                    order by n returning id, event_subject_ref::text""",
                chosen,
            )
            for row in rows:
                written[row[1]].append(row[0])
        consumer.begin()
        try:
            for kill in range(1, KILLS + 1):
                wanted = EVENTS * kill // (KILLS + 1)
                while await connection.fetchval(SENT + " >= $1", wanted) is not True:
                    await asyncio.sleep(0.01)
                await consumer.kill_and_wait()
            await wait_until_settled(connection, 60 + EVENTS / 100)
        finally:
            await consumer.end()
        assert consumer.starts > KILLS
        failed = [e for events in written.values() for e in events if e.int % 50 == 0]
        for event in failed[:20]:
            found = await attempts(connection, event, "storm")
            assert found[-1][1:3] == ("sent", "delivered")
        assert await connection.fetchval("select count(*) from iu_route_dead_letter") == 0
        sent = "select count(*), count(distinct event_ref) from iu_route_attempt where route_code = 'storm' and status = 'sent'"
        assert tuple(await connection.fetchrow(sent)) == (EVENTS, EVENTS)

    noted = CallLog.read([consumer.call_log_file])
    assert (noted.overlapping, noted.unmatched) == ({}, 0)
    arrived: dict[str, list[UUID]] = defaultdict(list)
    for event, subject in noted.first.items():
        arrived[subject].append(event)
    assert arrived == written
