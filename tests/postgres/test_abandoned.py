"""Calls that ignore their cancellation, seen from outside: they pause the route, and a program can end beside them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest

from iu_listen import Delivery
from iu_listen.flow.call_executor import MAX_ABANDONED
from iu_listen.model.observation import CallAbandoned, RoutePaused, RouteResumed
from iu_listen.targets.python import PythonTarget
from postgres.delivery_helpers import ROUTE, add_route, count_deliveries, delivering, open_route
from support import connected, insert_event, wait_until


@pytest.mark.asyncio
async def test_too_many_abandoned_calls_pause_their_route(live):
    """When too many abandoned calls run, the route is paused with a reason, and other routes go on.

    It goes on when the calls have ended. The observation, the view and health give the reason.

    Fails when: the target is called although its highest number of abandoned calls still run.
    """
    end = asyncio.Event()
    called = 0

    async def ignore(_: Delivery) -> None:
        nonlocal called
        called += 1
        while not end.is_set():
            with suppress(asyncio.CancelledError):
                await end.wait()

    async def arrive(_: Delivery) -> None:
        pass

    policy: dict[str, Any] = {
        "attempts": 1,
        "deadline": 0.2,
        "concurrency": 60,
        "breaker": 1000,
        "dead_letters_in_a_row": 1000,
    }
    async with connected(live.dsn) as connection:
        await open_route(connection, **policy)
        await add_route(connection, "second")
        targets = PythonTarget("event_outbox", ignore), PythonTarget("second", arrive)
        async with delivering(live.dsn, *targets) as recorder:
            async with connection.transaction():
                for _ in range(MAX_ABANDONED + 200):
                    await insert_event(connection)
            await wait_until(lambda: _soon(recorder.of(RoutePaused)), "the route is held", 60)
            (held,) = recorder.of(RoutePaused)
            assert (held.route, held.paused_by) == (ROUTE, "no_target")
            assert (
                held.why
                == f"{MAX_ABANDONED} abandoned calls of workflow event_outbox still run, because they ignore their cancellation"
            )
            assert "CancelledError" in held.hint
            assert {(o.route, o.called) for o in recorder.of(CallAbandoned)} == {(ROUTE, "workflow event_outbox")}

            async def seen() -> bool:
                return (
                    await connection.fetchval("select why from v_iu_delivery where paused_by = 'no_target'") == held.why
                )

            await wait_until(seen, "delivery list says so", 20)
            warnings = await connection.fetchval(
                "select fn_iu_route_worker_health('iu_outbound_default') -> 'warnings'"
            )
            assert held.why in warnings
            # The calls in flight when the bound was reached are abandoned, too.
            assert MAX_ABANDONED <= called <= MAX_ABANDONED + policy["concurrency"]
            waiting = await connection.fetchval("select count(*) from iu_route_delivery where route_code = 'second'")
            assert waiting == 0
            end.set()
            await wait_until(lambda: _none(connection), "the rest is delivered", 60)
            (free,) = recorder.of(RouteResumed)
            assert (free.route, free.paused_by) == (ROUTE, "no_target")
            sent = await connection.fetchval(
                "select count(*) from iu_route_attempt where route_code = $1 and status = 'sent'", ROUTE
            )
            assert sent >= MAX_ABANDONED + 200 - called


async def _soon(answer: object) -> bool:
    return bool(answer)


async def _none(connection) -> bool:
    return not await count_deliveries(connection)


PROGRAM = """
import asyncio
import sys
from contextlib import suppress

import uvloop

from iu_listen import Consumer, Settings, target

called = asyncio.Event()


@target("event_outbox")
async def ignore(delivery):
    called.set()
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def main():
    async with Consumer(Settings(dsn=sys.argv[1], grace_period=0.5), targets=[ignore], observers=()):
        await called.wait()
    print("the program ends")


(uvloop if sys.argv[2] == "uvloop" else asyncio).run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_program_exits_in_time_despite_abandoned_calls(live, loop):
    """Leaving the block takes at most its grace period and a second; ``asyncio.run`` does not wait for abandoned calls.

    Fails when: the block waits for such a call, or the call remains a task that asyncio.run waits for.
    """

    async def prepare() -> None:
        async with connected(live.dsn) as connection:
            await open_route(connection)
            await insert_event(connection)

    asyncio.run(prepare())
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "IU_LISTEN_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, live.dsn, loop],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "the program ends\n"), done.stderr
