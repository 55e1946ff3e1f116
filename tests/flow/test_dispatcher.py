"""The dispatcher of a standby."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from iu_listen.flow.dispatcher import Dispatcher
from iu_listen.model.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """The tasks that call targets are tasks of asyncio."""
    return "asyncio"


class Unasked:
    """Sessions, targets and an observer that may only be closed."""

    async def aclose(self) -> None:
        """Close nothing, because nothing is open."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


async def test_a_deliverer_that_rests_waits():
    """The dispatcher of a standby waits until it is woken, and uses no processor time.

    Fails when: the ring that made it rest is not cleared, so that it never waits and a standby uses a whole processor.
    """
    dispatcher = Dispatcher(Settings(), Unasked(), Unasked(), Unasked())
    waited = 0
    wait = dispatcher._take_wake.wait

    async def counted(timeout: float) -> bool:
        nonlocal waited
        waited += 1
        return await wait(timeout)

    dispatcher._take_wake.wait = counted  # type: ignore[method-assign]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dispatcher.run)
        for _ in range(3):
            dispatcher.rest()
            for _ in range(20):
                await anyio.sleep(0)
        dispatcher.stop()
    assert waited <= 4
