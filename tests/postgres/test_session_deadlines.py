"""Deadlines of statements: which errors they cause, and when an answer still counts."""

from __future__ import annotations

import asyncio
import select
import time

import asyncpg
import pytest

from iu_listen.model.errors import NoAnswer, Refused, SessionLost
from iu_listen.postgres.session import ask, session

pytestmark = pytest.mark.asyncio


async def freeze_event_loop(connection: asyncpg.Connection, until: float) -> None:
    """Block the event loop from the sending of a statement until its answer can be read and the clock reaches `until`.

    `until` is a time of the monotonic clock, in seconds.
    """
    await asyncio.sleep(0)
    fileno = connection._transport.get_extra_info("socket").fileno()
    readable, _, _ = select.select([fileno], [], [], 5)
    assert readable
    time.sleep(max(0.0, until - time.monotonic()))


@pytest.mark.both_loops
@pytest.mark.parametrize(("deadline", "lost"), [(0.2, NoAnswer), (20, SessionLost)])
async def test_a_session_that_ends_within_a_statement_is_lost(live, deadline, lost):
    """If a deadline or another task ends the session between the two steps of a statement, only the session is lost.

    The driver first parses a statement and then binds it.

    Fails when: the error that the driver raises then ends the consumer, for example a frozen consumer that goes on.
    """
    for _ in range(20):
        async with session(live.dsn, name="a test") as connection:
            asked = asyncio.create_task(ask(connection, deadline, "select 1"))
            await freeze_event_loop(connection, until=time.monotonic() + 0.3)
            await asyncio.sleep(0)
            if lost is SessionLost:
                # After the answer is read, and before the waiting task gets it; a loaded server may have sent both
                # answers by then.
                asyncio.get_running_loop().call_soon(connection.terminate)
            (answer,) = await asyncio.gather(asked, return_exceptions=True)
            if answer != 1:
                assert type(answer) is lost
                assert connection.is_closed()
                return
    pytest.fail("the session was never ended between the two steps")


@pytest.mark.both_loops
async def test_an_answer_that_arrived_counts_after_the_deadline(live):
    """If a process was suspended and finds both the answer and an expired deadline, the
    answer counts and the session stays.

    Fails when: the deadline ends the session before the answer that was read is processed.
    """
    async with session(live.dsn, name="a test") as connection:
        for statement, said in (("select 1", "1"), ("select 1 / 0", "division by zero")):
            asked = asyncio.create_task(
                ask(connection, 0.2, await connection.prepare(statement + " + $1::int - $1"), 0)
            )
            await freeze_event_loop(connection, until=time.monotonic() + 0.3)
            try:
                answer = str(await asked)
            except Refused as refused:
                answer = refused.message
            assert said in answer
        assert await ask(connection, 5, "select 2") == 2


@pytest.mark.both_loops
async def test_a_missed_deadline_is_named_by_the_error(live):
    """A deadline of any length ends the session, and the error names the deadline.

    Fails when: a clock is compared to find out whether the deadline was the cause, because a loop that counts whole
    milliseconds may act up to one early.
    """
    for deadline in (0.0001, 0.0104, 0.0208, 0.0302, 0.0403):
        async with session(live.dsn, name="a test") as connection:
            with pytest.raises(NoAnswer, match=f"no answer within {deadline:g} s"):
                await ask(connection, deadline, await connection.prepare("select pg_sleep(5)"))
            assert connection.is_closed()
