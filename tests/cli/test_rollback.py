"""rollback removes the package completely; verify reports what is missing."""

from __future__ import annotations

import pytest

from cli.command import (
    POISON,
    REMEDY,
    catalogue,
    execute,
    holding,
    on_one_server,
    portrait,
    refused,
    rows,
    run,
    value,
)
from iu_listen.postgres.sqlfiles import package_files

WAIVED = ("--no-backup", "a test database")


def test_up_down_up(substrate):
    """After a rollback nothing differs from before, and a second apply has the same result as the first."""
    dsn = substrate.dsn
    execute(dsn, "select fn_iu_emit_event('version_applied', 'before', null, 'a', '{}') where false")
    before = portrait(dsn)

    assert run("apply", *WAIVED, dsn=dsn).code == 0
    up = catalogue(dsn)
    done = run("rollback", "--yes", "--json", dsn=dsn)
    assert done.code == 0, done.err
    assert done.json == {"rolled_back": [m.name for m in reversed(package_files())]}
    assert portrait(dsn) == before

    assert run("apply", *WAIVED, dsn=dsn).code == 0
    assert catalogue(dsn) == up
    assert run("verify", dsn=dsn).code == 0


#: The audit without the column that 007 adds to it.
AUDIT = "select event_ref, route_code, status, decision, idempotency_key, attempt_no from iu_route_attempt order by id"


@on_one_server
def test_attempts_survive_a_rollback(live):
    """A rollback removes the package, but neither the outbox nor the audit; applied again, it routes no event twice."""
    dsn = live.dsn
    assert run("emit", "--count", "5", dsn=dsn).code == 0
    execute(dsn, "select fn_iu_route_worker_run('iu_outbound_default', 100)")
    audit = rows(dsn, AUDIT)
    events = rows(dsn, "select id from event_outbox order by id")
    assert run("gate", "close", "worker", dsn=dsn).code == 0
    assert run("rollback", "--yes", dsn=dsn).code == 0
    assert rows(dsn, AUDIT) == audit
    assert rows(dsn, "select id from event_outbox order by id") == events


@on_one_server
def test_it_needs_a_yes(applied):
    """Without --yes rollback only prints the files that it would revert: exit code 1, or 0 with --plan."""
    before = portrait(applied.dsn)
    files = [m.name for m in reversed(package_files())]

    done = refused(1, "nothing was changed", "--yes")("rollback", dsn=applied.dsn)
    assert [line.split()[-1] for line in done.out.splitlines()] == files
    done = run("rollback", "--plan", dsn=applied.dsn)
    assert done.code == 0
    assert [line.split()[-1] for line in done.out.splitlines()] == files
    done = run("rollback", "--plan", "--json", dsn=applied.dsn)
    assert done.code == 0
    assert done.json == {"would_roll_back": files}
    assert portrait(applied.dsn) == before


@on_one_server
def test_not_while_the_gate_is_open(live):
    """While the worker gate is open, rollback refuses, tells how to close it, and changes nothing."""
    before = portrait(live.dsn)
    refused(1, "the worker gate is open", "iu-listen gate close worker")("rollback", "--yes", dsn=live.dsn)
    assert portrait(live.dsn) == before


@on_one_server
def test_not_while_dead_letters_are_open(live):
    """While a dead letter is open, rollback refuses and names the list; after it is resolved, rollback works."""
    dsn = live.dsn
    execute(dsn, POISON)
    assert run("emit", "--address", "poison", dsn=dsn).code == 0
    execute(dsn, "select fn_iu_route_worker_run('iu_outbound_default', 100)")
    execute(dsn, REMEDY)
    assert value(dsn, "select count(*) from v_iu_route_dead_letter_open") == 1
    assert run("gate", "close", "worker", dsn=dsn).code == 0
    before = portrait(dsn)
    refused(1, "1 dead letter(s) are open", "iu-listen dead-letter list")("rollback", "--yes", dsn=dsn)
    assert portrait(dsn) == before

    execute(dsn, "update iu_route_dead_letter set resolved_at = now(), resolution = 'by hand'")
    assert run("rollback", "--yes", dsn=dsn).code == 0


@on_one_server
def test_not_while_other_workers_are_registered(applied):
    """While workers of the application are registered, rollback refuses and changes nothing."""
    execute(
        applied.dsn,
        """insert into iu_route_worker_cursor (worker_name, event_domain, lineage)
           select 'mine', 'iu', lineage from iu_outbox_anchor""",
    )
    before = portrait(applied.dsn)
    refused(1, "other workers are registered", "cursor show")("rollback", "--yes", dsn=applied.dsn)
    assert portrait(applied.dsn) == before


@on_one_server
def test_not_beside_another_migrator(applied):
    """While another session migrates this database, rollback is refused."""
    with holding(applied.dsn, "select pg_advisory_lock(726004, 1)"):
        refused(1, "another iu-listen is migrating")("rollback", "--yes", dsn=applied.dsn)


@on_one_server
def test_a_ledger_with_a_gap(applied, substrate):
    """A package whose ledger lacks a line cannot be completed, but it can be rolled back."""
    execute(applied.dsn, "delete from iu_migration where name like '%/008%'")
    assert run("rollback", "--yes", dsn=applied.dsn).code == 0
    assert catalogue(applied.dsn) == catalogue(substrate.dsn)
    assert run("apply", *WAIVED, dsn=applied.dsn).code == 0


@on_one_server
def test_a_rollback_without_a_package_is_refused(substrate):
    """On a database without the package there is nothing to roll back: exit code 2."""
    refused(2, "no file of the package is applied")("rollback", "--yes", dsn=substrate.dsn)


# -- verify ------------------------------------------------------------------------------------------------------


@on_one_server
def test_verify_without_the_package(substrate):
    """verify fails with the reason if the package is not applied."""
    refused(1, "the package is not applied", "iu-listen apply --plan")("verify", dsn=substrate.dsn)


@on_one_server
def test_verify_without_the_substrate(empty):
    """verify fails with the reason if IU Core is missing."""
    refused(1, "the base is missing", "the database of IU Core")("verify", dsn=empty.dsn)


@on_one_server
def test_verify_changes_nothing(applied):
    """verify shows every check from W1 on, without a gap, all passed, and changes nothing."""
    before = portrait(applied.dsn)
    done = run("verify", "--json", dsn=applied.dsn)
    assert done.code == 0
    assert done.json["pass"] is True
    ids = [c["id"] for c in done.json["checks"]]
    assert len(ids) > 16
    assert ids == [f"W{n}" for n in range(1, len(ids) + 1)]
    assert all(c["pass"] and c["expected"] == c["observed"] for c in done.json["checks"])
    assert portrait(applied.dsn) == before


@on_one_server
def test_verify_a_worker_that_is_switched_on(live):
    """An enabled worker fails W4 and W8, and the remedy is named; --live accepts it."""
    done = run("verify", "--json", dsn=live.dsn)
    assert done.code == 1
    assert {c["id"] for c in done.json["checks"] if not c["pass"]} == {"W4", "W8"}
    refused(1, "iu-listen verify --live")("verify", dsn=live.dsn)
    assert run("verify", "--live", dsn=live.dsn).code == 0


@on_one_server
@pytest.mark.parametrize(
    ("change", "check"),
    [
        ("alter table event_outbox enable trigger zz_event_outbox_stamp", "W11"),
        ("alter sequence event_outbox_event_seq cache 20", "W12"),
        ("alter table event_outbox disable trigger zz_event_outbox_bell", "W15"),
        (
            """create or replace function fn_iu_route_deliver(p_route_code text, p_event_id uuid, p_event jsonb)
               returns jsonb language plpgsql as $$ begin if false then raise exception 'x'; end if; return p_event; end $$""",
            "W6",
        ),
    ],
)
def test_verify_finds(applied, change, check):
    """An object that was disabled or replaced after the apply is found by its check."""
    execute(applied.dsn, change)
    done = run("verify", "--json", dsn=applied.dsn)
    assert done.code == 1
    assert {c["id"] for c in done.json["checks"] if not c["pass"]} == {check}


def test_a_second_apply_accepts_existing_attempts(live):
    """A package that has routed events is rolled back and applied again: W9 expects all events before the new worker.

    Fails when: W9 expects only the events that have no attempt yet.
    """
    execute(
        live.dsn,
        "select fn_iu_emit_event('version_applied', 'a', gen_random_uuid(), 'test', '{}') from generate_series(1, 5)",
    )
    execute(live.dsn, "select fn_iu_route_worker_run('iu_outbound_default', 100)")
    execute(live.dsn, "update dot_config set value = 'false' where key = 'iu_core.route_worker_enabled'")
    assert run("rollback", "--yes", dsn=live.dsn).code == 0

    done = run("apply", "--no-backup", "a test", dsn=live.dsn)

    assert done.code == 0, done.out + done.err
    assert run("verify", dsn=live.dsn).code == 0
