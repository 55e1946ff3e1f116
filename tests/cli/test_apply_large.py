"""apply on a large outbox that is in use: writers continue, and finished steps are not repeated."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest

from cli.command import execute, rows, run, value
from iu_listen.install import migrate
from iu_listen.install import preflight as gates
from iu_listen.install.package import package_state
from iu_listen.postgres.session import session
from support import connected

OLD = """
    insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, safe_payload, created_at)
    select 'iu', 'version_applied', 'update', 'immediate', jsonb_build_object('text', repeat('x', 100)),
           now() - ((n * 7919) % $1::int) * interval '1 minute'
      from generate_series(1, $1::int) n
"""
ORDER = """
    select count(*) filter (where event_seq = 0) as unnumbered, count(distinct event_seq) = count(*) as unique,
           count(*) filter (where event_seq < 0) as old,
           (select bool_and(q.grows) from (select e.event_seq > lag(e.event_seq) over (order by e.created_at, e.id) as grows
                                             from event_outbox e where e.event_seq < 0) q) as in_order
      from event_outbox
"""


async def _writing(dsn: str, over: asyncio.Event) -> float:
    """Insert events one after the other; return the longest duration of one insert, in seconds."""
    longest = 0.0
    async with connected(dsn) as connection:
        while not over.is_set():
            began = time.monotonic()
            await connection.execute(
                """insert into event_outbox (event_domain, event_type, event_stream, delivery_lane)
                   values ('iu', 'version_applied', 'update', 'immediate')"""
            )
            longest = max(longest, time.monotonic() - began)
            await asyncio.sleep(0)
    return longest


def test_writers_go_on_while_a_large_log_is_prepared(substrate):
    """On an outbox larger than SMALL_OUTBOX_BYTES, no full read of it holds a lock: no writer waits for a second.

    The probe uses the applied files. Fails when: the files are tried in the transaction of the probe, independent of
    the size of the outbox.
    """

    async def both():
        async with connected(substrate.dsn) as connection:
            await connection.execute(OLD, 60_000)
            assert await connection.fetchval("select pg_relation_size('event_outbox')") > 2 * gates.SMALL_OUTBOX_BYTES
        over = asyncio.Event()
        writer = asyncio.create_task(_writing(substrate.dsn, over))
        # The command is a separate process, so that its work does not delay the writer of this one.
        done = await asyncio.to_thread(run, "apply", "--json", "--no-backup", "x", dsn=substrate.dsn, timeout=120)
        over.set()
        return done, await writer

    done, longest = asyncio.run(both())

    assert done.code == 0, done.err
    assert "the probe runs after the files" in done.json["gates"][7]["evidence"]
    assert longest < 1
    (found,) = rows(substrate.dsn, ORDER)
    assert (found["unnumbered"], found["unique"], found["in_order"]) == (0, True, True)
    # Events that the writer inserted before 005 count as old events, too.
    assert found["old"] >= 60_000
    assert run("rollback", "--yes", dsn=substrate.dsn).code == 0


def test_the_probe_takes_a_large_apply_back(substrate):
    """If the probe fails after the files were applied to a large outbox, they are reverted.

    Fails when: the gate is passed for good before the probe has run.
    """
    asyncio.run(_fill(substrate.dsn))
    asyncio.run(_break_the_emitter(substrate.dsn))
    done = run("apply", "--no-backup", "x", dsn=substrate.dsn)

    assert done.code == 1
    assert "All changes were rolled back" in done.err
    assert value(substrate.dsn, "select to_regclass('public.iu_route_worker_cursor')") is None


def test_an_apply_continues_after_a_failed_rollback(substrate):
    """An apply that fails and cannot be reverted states the reason and its progress; the next one continues there.

    Fails when: the error of the reversal replaces the original error.
    """
    asyncio.run(_fill(substrate.dsn))
    asyncio.run(_break_the_emitter(substrate.dsn))
    execute(
        substrate.dsn,
        """create function test_no_drops() returns event_trigger language plpgsql as $$
           begin
               if tg_tag = 'DROP FUNCTION' then raise exception 'no drops in office hours'; end if;
           end $$;
           create event trigger test_no_drops on ddl_command_start execute function test_no_drops()""",
    )
    done = run("apply", "--no-backup", "x", dsn=substrate.dsn)

    assert done.code == 1
    assert "observed" in done.err.splitlines()[0]
    assert "The files of this run could not be rolled back: no drops in office hours" in done.err
    assert "To go on: `iu-listen apply`" in done.err
    execute(
        substrate.dsn,
        "drop event trigger test_no_drops; drop trigger aa_test on event_outbox",
    )
    assert run("apply", "--no-backup", "x", dsn=substrate.dsn).code == 0


async def _fill(dsn: str) -> None:
    async with connected(dsn) as connection:
        await connection.execute(OLD, 30_000)


async def _break_the_emitter(dsn: str) -> None:
    """Break the emitter: its events are of another domain, so that no worker of iu sees them."""
    async with connected(dsn) as connection:
        await connection.execute(
            """create function test_elsewhere() returns trigger language plpgsql as $$
               begin
                   new.safe_payload := jsonb_build_object('raw_text', 'x');
                   return case when new.canonical_address is null then new end;
               end $$;
               create trigger aa_test before insert on event_outbox for each row execute function test_elsewhere()"""
        )


def test_numbering_goes_on_where_it_was_interrupted(substrate):
    """Old events are numbered in batches, the oldest first; the numbers of an interrupted run are kept.

    Fails when: the numbering is one statement, or a second run ignores the numbers of the first.
    """

    async def halves() -> list[asyncpg.Record]:
        async with connected(substrate.dsn) as admin:
            await admin.execute(OLD, 23_000)
        batches: list[int] = []

        def interrupt(_: str, what: str, so_far: int) -> None:
            assert what == "numbering events"
            batches.append(so_far)
            if len(batches) == 2:
                raise LookupError

        async with session(substrate.dsn, name="test") as connection:
            pending = (await package_state(connection)).pending
            with pytest.raises(LookupError):
                await migrate.apply_files(connection, pending, {}, lambda _: None, progress=interrupt)
        async with connected(substrate.dsn) as admin:
            first = {
                r["id"]: r["event_seq"] for r in await admin.fetch("select * from event_outbox where event_seq < 0")
            }
        async with session(substrate.dsn, name="test") as connection:
            state = await package_state(connection)
            assert not state.drift()
            assert state.pending[0].number == "006"
            await migrate.apply_files(connection, state.pending, {}, lambda _: None, progress=interrupt)
        async with connected(substrate.dsn) as admin:
            kept = {r["id"]: r["event_seq"] for r in await admin.fetch("select * from event_outbox")}
            assert len(first) == 10_000
            assert first.items() <= kept.items()
            assert batches == [5000, 10_000, 5000, 10_000, 13_000]
            return await admin.fetch(ORDER)

    (found,) = asyncio.run(halves())
    assert tuple(found) == (0, True, 23_000, True)
