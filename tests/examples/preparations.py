"""The state that an example of a page needs before its commands run: one function for each name in the pages."""

from __future__ import annotations

import signal
from collections.abc import Callable

from cli.command import POISON, REMEDY, Running, seen, value
from clusters import place
from examples.session import Session
from iu_listen import embedded

PREPARATIONS: dict[str, Callable[[Session], object]] = {}
#: A trigger like that of the tutorial: the decision about an event with the address demo/broken fails.
BROKEN = POISON.replace("'poison'", "'demo/broken'").replace("poisoned", "the rule for demo/broken is violated")


def preparation(function: Callable[[Session], object]) -> Callable[[Session], object]:
    """Add a preparation; its name in a page has blanks in place of underscores."""
    PREPARATIONS[function.__name__.replace("_", " ")] = function
    return function


def emitted(session: Session, address: str, count: int = 1, age: str = "0 s") -> None:
    """Append events with this address, of this age."""
    session.execute(
        f"""insert into event_outbox (event_domain, event_type, event_stream, delivery_lane, canonical_address, created_at)
            select 'iu', 'version_applied', 'update', 'immediate', '{address}', now() - interval '{age}'
              from generate_series(1, {count})"""
    )


def routed(session: Session, limit: int = 5000) -> None:
    """Route this many events."""
    session.execute(f"select fn_iu_route_worker_run('iu_outbound_default', {limit})")


# -- databases ---------------------------------------------------------------------------------------------------


@preparation
def own_server(session: Session) -> None:
    """An embedded server of its own, without a database; it runs until the session ends."""
    root = session.stack.enter_context(place())
    session.env["IU_LISTEN_DATA_DIR"] = str(root / "data")
    server = session.stack.enter_context(embedded.running(root / "data", 18))
    session.stack.callback(session.stop)
    # Only for SQL and preparations: the commands find the server by its directory.
    session.psql_dsn = server.dsn("iu")


@preparation
def own_database(session: Session) -> None:
    """A database with IU Core and without the package."""
    session.database("base", "directus")


@preparation
def package(session: Session) -> None:
    """A database with the package, and its worker gate open."""
    session.database("applied")
    session.listen("gate", "open", "worker")


@preparation
def consumer(session: Session) -> None:
    """The consumer runs."""
    session.run()


@preparation
def catch_up_poll(session: Session) -> None:
    """The consumer is idle, and has written a heartbeat after its last catch-up poll."""
    seen(session.sql_dsn, "select count(*) = 1 from iu_consumer_heartbeat where last_wake = 'catch_up' and events > 0")


@preparation
def consumer_stopped(session: Session) -> None:
    """The consumer was told to stop, and has stopped."""
    session.stop()


@preparation
def silence(session: Session) -> None:
    """Fifteen seconds and more without a consumer, after events that wait."""
    session.execute(
        """update iu_consumer_heartbeat set beat_at = beat_at - interval '20 s';
           update iu_route_worker_cursor set last_run_at = last_run_at - interval '20 s';
           update dot_config set updated_at = updated_at - interval '20 s';
           update event_outbox set created_at = created_at - interval '20 s'"""
    )


@preparation
def killed_consumer(session: Session) -> None:
    """The consumer was killed, 1 000 events wait, and twenty seconds have passed."""
    package(session)
    session.run().end(signal.SIGKILL)
    emitted(session, "demo/unit", 1000)
    silence(session)


@preparation
def second_consumer(session: Session) -> None:
    """A second consumer of a worker whose consumer runs."""
    package(session)
    first = Running("run", dsn=session.dsn, env=session.env)
    session.stack.callback(first.close)
    first.until_it_says("working")
    session.start("run", "--log-format", "console")


@preparation
def everything_routed(session: Session) -> None:
    """The running consumer has routed all events."""
    seen(session.sql_dsn, "select sum(backlog) = 0 from v_iu_event_backlog")


@preparation
def demo(session: Session) -> None:
    """`make demo` has run to its end."""
    root = session.stack.enter_context(place())
    session.env["IU_LISTEN_DATA_DIR"] = str(root / "data")
    assert session.start("demo").ended(180) == 0


# -- events and dead letters -------------------------------------------------------------------------------------


@preparation
def events_of_a_week(session: Session) -> None:
    """1 204 events of the last seven days were taken by their route, and another one has failed."""
    package(session)
    session.execute(BROKEN)
    emitted(session, "demo/broken", age="5 days")
    emitted(session, "demo/unit", 1204, age="6 days")
    routed(session)


@preparation
def dead_letters(session: Session) -> None:
    """One event has become a dead letter, and the trigger that is to blame still exists."""
    package(session)
    session.execute(BROKEN)
    for address in ("demo/good", "demo/broken", "demo/good"):
        emitted(session, address)
    routed(session)
    session.given = [str(value(session.sql_dsn, "select id from iu_route_dead_letter"))]


@preparation
def mended(session: Session) -> None:
    """The trigger that made dead letters is dropped."""
    session.execute(REMEDY)


@preparation
def replayed_event(session: Session) -> None:
    """An event has failed, and its dead letter was replayed."""
    package(session)
    session.execute(BROKEN.replace("the rule for demo/broken is violated", "no such unit"))
    emitted(session, "demo/broken")
    routed(session)
    mended(session)
    session.listen("dead-letter", "replay", "--all", "--without-delivery")
    session.given = [str(value(session.sql_dsn, "select event_ref from iu_route_dead_letter"))]


# -- repairs -----------------------------------------------------------------------------------------------------


@preparation
def missing_view(session: Session) -> None:
    """A view of the package was dropped by hand."""
    package(session)
    session.execute("drop view v_iu_route_dead_letter_open cascade")


@preparation
def edited_file(session: Session) -> None:
    """A file of the package was applied with another content than it has now."""
    package(session)
    session.execute("update iu_migration set checksum = repeat('a', 64) where name like '%/008%'")


@preparation
def other_functions(session: Session) -> None:
    """A file of functions was applied with another text than it has now."""
    package(session)
    session.execute("update iu_migration set checksum = repeat('a', 64) where name = 'functions/wake'")


@preparation
def foreign_history(session: Session) -> None:
    """A restored dump of a cluster with higher transaction ids: 1 005 events were read there, two waited.

    After the restore another event was written here, and the consumer was started.
    """
    package(session)
    emitted(session, "demo/unit", 1005)
    routed(session)
    session.execute(
        """update event_outbox set xact_id = (xact_id::text::bigint + 1000000)::text::xid8;
           update iu_route_worker_cursor set prev = format('%s:%s:', x, x)::pg_snapshot, tick = null
             from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000000) f(x);
           create temp table kept on commit drop as select * from iu_outbox_anchor;
           delete from iu_outbox_anchor;
           insert into iu_outbox_anchor select * from kept"""
    )
    emitted(session, "demo/unit", 2)
    session.execute(
        """update event_outbox set xact_id = (xact_id::text::bigint + 2000000)::text::xid8
            where xact_id::text::bigint < 1000000"""
    )
    emitted(session, "demo/unit")
    session.start("run", "--log-format", "console")
    assert session.service is not None
    session.service.until_it_says("not working")


@preparation
def lost_attempts(session: Session) -> None:
    """The attempts of three of 1 000 events were deleted."""
    package(session)
    emitted(session, "demo/unit", 1000)
    routed(session)
    session.execute("delete from iu_route_attempt where id in (select id from iu_route_attempt order by id limit 3)")


@preparation
def disabled_trigger(session: Session) -> None:
    """The trigger of the bell was disabled by hand."""
    package(session)
    session.execute("alter table event_outbox disable trigger zz_event_outbox_bell")


# -- retention ---------------------------------------------------------------------------------------------------


@preparation
def old_events(session: Session) -> None:
    """3 000 events are old and were read by both workers, and 1 320 old ones were read by one of them only."""
    session.execute(
        """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
           select 'iu_reports', event_domain, lineage from iu_route_worker_cursor"""
    )
    emitted(session, "demo/unit", 3000, "105 days")
    session.execute(
        """select fn_iu_route_worker_run('iu_reports', 5000);
           update iu_route_worker_cursor set last_run_at = now() - interval '19 days' where worker_name = 'iu_reports'"""
    )
    emitted(session, "demo/unit", 1320, "95 days")
    routed(session)
