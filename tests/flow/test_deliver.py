"""The deliverer of a consumer that stands by."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from iu_listen.flow.deliver import Deliverer
from iu_listen.model.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """The tasks that call targets are tasks of asyncio."""
    return "asyncio"


class Unasked:
    """Sessions, targets and a watcher of which nothing is wanted but to be closed."""

    async def aclose(self) -> None:
        """Nothing is open."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


async def test_a_deliverer_that_rests_waits():
    """A deliverer whose consumer stands by waits until something rings: it uses no processor time.

    Fails when: the ring that told it to rest is not cleared. It then never waits, and a standby uses a whole processor.
    """
    deliverer = Deliverer(Settings(), Unasked(), Unasked(), Unasked())
    waited = 0
    wait_rung = deliverer._ring.wait_rung

    async def counted(timeout: float) -> bool:
        nonlocal waited
        waited += 1
        return await wait_rung(timeout)

    deliverer._ring.wait_rung = counted  # type: ignore[method-assign]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deliverer.run)
        for _ in range(3):
            deliverer.rest()
            for _ in range(20):
                await anyio.sleep(0)
        deliverer.stop()
    assert waited <= 4
