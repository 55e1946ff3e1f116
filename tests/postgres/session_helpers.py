"""Helpers for the tests of sessions: a second consumer, the heartbeat, and sessions that are ended."""

from __future__ import annotations

from collections import Counter

from iu_listen.app import PostgresSessions
from iu_listen.flow.consumer import ConsumerLoop
from iu_listen.model.settings import Settings
from support import attempted, wait_until

TERMINATE_SESSION = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
     where datname = current_database() and application_name = $1"""


async def wait_until_routed(connection, events, within: float = 15) -> None:
    async def all_there() -> bool:
        return len(await attempted(connection)) >= len(events)

    await wait_until(all_there, f"{len(events)} events are attempted", within)
    assert Counter(await attempted(connection)) == Counter(events)


async def has_observed(seen, kind: type, at_least: int) -> bool:
    return len(seen.of(kind)) >= at_least


class BackgroundConsumer:
    """A second consumer, as a task of the test."""

    def __init__(self, dsn: str, recorder, **settings) -> None:
        loaded = Settings.load({}, {"dsn": dsn, **settings})
        self.recorder = recorder
        self.consumer = ConsumerLoop(loaded, PostgresSessions(loaded), recorder)


async def latest_heartbeat(connection):
    return await connection.fetchrow("select * from iu_consumer_heartbeat order by started_at desc limit 1")
