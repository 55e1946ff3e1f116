"""Event ids ascend in time, so that the indexes of outbox and audit grow at one end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import RFC_4122, UUID

from cli.command import execute, rows, value
from iu_listen.producer.event_id import new_event_id


def are_of_now(ids: Sequence[UUID], began: float) -> None:
    """Assert that these are different UUIDs of version 7, with times from ``began`` to now, in their order."""
    times = [id.int >> 80 for id in ids]
    assert len(set(ids)) == len(ids)
    assert {(id.version, id.variant) for id in ids} == {(7, RFC_4122)}
    assert times == sorted(times)
    # The clock of the server is that of this machine; its ids are rounded down to milliseconds.
    assert 1000 * began - 2 <= times[0] <= times[-1] <= 1000 * time.time() + 2


def test_new_ids_ascend():
    """Ids of emit() have the time in their first 48 bits, and a random rest.

    Fails when: the id is random as a whole, or a bit field has a wrong place.
    """
    began = time.time()
    ids = []
    for _ in range(20):
        ids.append(new_event_id())
        time.sleep(0.002)
    are_of_now(ids, began)
    assert len({id.int & (1 << 62) - 1 for id in ids}) == len(ids)


def test_the_ids_of_the_neutral_base_ascend(neutral):
    """Events that are inserted without an id get one of version 7, on each version of PostgreSQL.

    Fails when: the default is that of the base, or the expression for PostgreSQL 15 to 17 is wrong.
    """
    execute(neutral, "insert into event_type_registry (event_type) values ('t')")
    began = time.time()
    for _ in range(20):
        execute(neutral, "insert into event_outbox (event_type) values ('t')")
    are_of_now([row["id"] for row in rows(neutral, "select id from event_outbox order by event_seq")], began)


def test_the_ids_of_iu_core_are_unchanged(applied):
    """The base of IU Core belongs to another owner: its default stays."""
    default = """select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d
                  where d.adrelid = 'event_outbox'::regclass and d.adnum = 1"""
    assert value(applied.dsn, default) == "gen_random_uuid()"
