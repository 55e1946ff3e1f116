"""fn_iu_json_exceeds: whether the text of a JSON value exceeds a limit, without making that text.

The migration is 005.
"""

from __future__ import annotations

import re
from typing import Any

import asyncpg
import pytest

from support import connected

pytestmark = pytest.mark.asyncio

LIMIT = 4 << 20
#: Numbers that take few bytes in storage: the number, its count, and its digits as text.
NUMBERS = {
    "beyond 1e308": ("1e131071", 2_200, 131_072),
    "below -1e308": ("-1e131071", 2_200, 131_073),
    "below 1e-308": ("1e-16383", 18_000, 16_385),
    "above -1e-308": ("-1e-16383", 18_000, 16_386),
}
KEPT = "create table kept (value jsonb); alter table kept alter value set storage external"
FILL = "insert into kept select jsonb_agg({}::numeric) from generate_series(1, {})"


async def memory_of(connection: asyncpg.Connection, statement: str, *values: Any) -> tuple[Any, int]:
    """Execute a statement; return its result and the peak memory of the server process so far, in kB."""
    said: list[str] = []

    def listen(_: object, message: asyncpg.PostgresLogMessage) -> None:
        said.append(str(message.detail))

    connection.add_log_listener(listen)
    await connection.execute("set client_min_messages = log; set log_statement_stats = on")
    answer = await connection.fetchval(statement, *values)
    await connection.execute("set log_statement_stats = off")
    connection.remove_log_listener(listen)
    return answer, max(int(kb) for kb in re.findall(r"(\d+) kB max resident size", " ".join(said)))


@pytest.mark.parametrize("what", NUMBERS)
async def test_a_number_with_a_huge_text_is_not_converted(live, what):
    """A value of numbers with few bytes and many digits exceeds the limit, and the check
    needs no memory for the digits.

    Fails when: the number of digits is not bounded before the value is converted.
    """
    number, count, digits = NUMBERS[what]
    async with connected(live.dsn) as connection:
        await connection.execute(KEPT)
        await connection.execute(FILL.format(number, count))
    assert count * digits > 250_000_000
    async with connected(live.dsn) as connection:
        stored, before = await memory_of(connection, "select pg_column_size(value || '[]') from kept")
        assert stored < 4 * LIMIT
        exceeds, after = await memory_of(connection, "select fn_iu_json_exceeds(value, $1) from kept", LIMIT)
        assert exceeds
        # The text alone would have more than 250 MB.
        assert after - before < 100_000
