"""run --until-idle and Consumer.drained(): the consumer ends when there is nothing to do, for cron, scripts and tests."""

from __future__ import annotations

import asyncio
import json

import pytest

from cli.command import execute, on_one_server, refused, run, value
from iu_listen import Consumer, Settings
from postgres.delivery_helpers import RecordingTarget, open_route
from support import connected, insert_event

pytestmark = on_one_server


def test_a_backlog_is_routed_and_the_command_ends(live):
    """All events are routed, and the command ends with 0 and says why; a second one ends at once.

    Fails when: it ends before the last page, or waits for further events.
    """
    execute(
        live.dsn,
        """select fn_iu_emit_event('version_applied', 'a', gen_random_uuid(), 'test', '{}')
             from generate_series(1, 2500)""",
    )
    for _ in range(2):
        done = run("run", "--until-idle", "--log-format", "json", dsn=live.dsn)
        assert done.code == 0, done.err
        assert "there is nothing to do" in [json.loads(line).get("why") for line in done.err.splitlines()]
    assert value(live.dsn, "select count(*) from iu_route_attempt") == 2500


def test_a_closed_gate_is_an_error(applied):
    """With a closed gate nothing would ever be done, so the command says so instead of waiting."""
    refused(1, "closed gates: worker", "iu-listen gate open worker")("run", "--until-idle", dsn=applied.dsn)


def test_a_mistyped_variable_is_named(live):
    """run and doctor name a variable that is no setting, once, with the most similar one, without its value.

    Fails when: the variable is ignored silently, fails the command, or is shown with its value.
    """
    env = {"IU_LISTEN_BATCHLIMIT": "canary"}
    done = run("run", "--until-idle", "--log-format", "json", dsn=live.dsn, env=env)
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert [(line["variable"], line["hint"]) for line in lines if "unknown environment" in line["event"]] == [
        ("IU_LISTEN_BATCHLIMIT", "Did you mean IU_LISTEN_BATCH_LIMIT?")
    ]
    findings = run("doctor", "--json", dsn=live.dsn, env=env)
    (found,) = [f for f in findings.json["findings"] if f["what"] == "environment"]
    assert (found["level"], found["hint"]) == ("warn", "Did you mean IU_LISTEN_BATCH_LIMIT?")
    assert (done.code, "canary" in done.err + findings.out) == (0, False)


def test_handlers_without_a_route_are_named(neutral, tmp_path):
    """run warns of handlers to which no route delivers, and names the command that adds the routes.

    Fails when: their events pass them by, and nothing says so.
    """
    (tmp_path / "billing.py").write_text("from iu_listen import on\n\n@on('paid')\ndef book(delivery): ...\n")
    env = {"PYTHONPATH": str(tmp_path)}

    def warned() -> list[tuple[list[str], str]]:
        done = run("run", "--app", "billing", "--until-idle", "--log-format", "json", dsn=neutral, env=env)
        lines = [json.loads(line) for line in done.err.splitlines()]
        return [(line["handlers"], line["hint"]) for line in lines if "without a route" in line["event"]]

    assert run("gate", "open", "worker", dsn=neutral).code == 0
    assert run("gate", "open", "delivery", dsn=neutral).code == 0
    assert warned() == [(["paid.book"], "iu-listen route sync --app billing")]
    assert run("route", "sync", "--app", "billing", "--yes", dsn=neutral, env=env).code == 0
    assert warned() == []


def test_deliveries_are_settled_and_retries_are_left(live):
    """drained() waits for deliveries that can begin, and leaves one that waits for its retry.

    Fails when: it returns while a call runs, or waits for the backoff.
    """

    async def behave(delivery):
        await asyncio.sleep(0.2)
        if delivery.event.data["note"] == "bad":
            raise ValueError("later")

    async def go() -> None:
        recording = RecordingTarget(behave)
        async with connected(live.dsn) as connection:
            await open_route(connection, backoff=3600)
            events = [await insert_event(connection, note=note) for note in ("", "bad", "")]
            async with Consumer(Settings(dsn=live.dsn), targets=[recording.target()], wait=10) as consumer:
                await consumer.drained(20)
                assert set(recording.delivered) == {events[0], events[2]}
                assert await connection.fetchval("select count(*) from iu_route_delivery") == 1
                with pytest.raises(TimeoutError):
                    await connection.execute("update iu_route_delivery set due_at = now()")
                    await connection.execute("select pg_sleep(0)")
                    await consumer.drained(0)

    asyncio.run(go())
