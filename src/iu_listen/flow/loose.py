"""Tasks that nothing has to wait for: they run code of a user, which may go on after it was cancelled.

A task group waits for each of its tasks, however long one ignores its cancellation. So whatever awaits code of a user
is a task outside of all groups, which can be left behind. This is the one module of the flow that needs asyncio itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import anyio

#: How long a task that was cancelled has, until it is cancelled again, in seconds.
AGAIN: Final = 0.1


class Loose:
    """A task outside of all task groups. It begins with a copy of the current context, as the tasks of a group do.

    Args:
        run: What it does.
        ended: Called when it has ended, in whatever way.

    Attributes:
        error: What ``run`` raised; None: nothing, or a cancellation.
    """

    def __init__(self, run: Callable[[], Awaitable[object]], ended: Callable[[], None] = lambda: None) -> None:
        self.error: Exception | None = None
        self._scope = anyio.CancelScope()
        self._shield = anyio.CancelScope()
        self._task = asyncio.create_task(self._run(run))
        self._task.add_done_callback(lambda _: ended())

    async def _run(self, run: Callable[[], Awaitable[object]]) -> None:
        # Where the code of the user has entered a scope of its own and never left it, these raise at their end. That is
        # no error of ``run``.
        with self._scope, self._shield:
            try:
                await run()
            except Exception as error:  # noqa: BLE001 it is raised where its end is waited for
                self.error = error

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to end."""
        return self._scope.cancel_called

    def cancel(self) -> None:
        """Ask it to end: what it awaits raises, once, unless that is behind a shield.

        A scope by itself would cancel it in every turn of the event loop, and code that ignores that would take all of
        the processor. So a shield is put up between the two as soon as the cancellation is delivered.
        """
        self._shield.shield = False
        self._scope.cancel()
        self._shield.shield = True

    def leave(self) -> None:
        """It goes on, and ``asyncio.run`` does not wait for it either."""
        # The one way to take a task out of those that asyncio.run waits for. Documented for makers of tasks.
        asyncio._unregister_task(self._task)  # noqa: SLF001


async def end(tasks: Iterable[Loose], seconds: float) -> list[Loose]:
    """Cancel these tasks, again and again for so many seconds at most; those that go on all the same."""
    going = list(tasks)
    until = anyio.current_time() + seconds
    while going and (left := until - anyio.current_time()) > 0:
        for task in going:
            task.cancel()
        going = await _going(going, min(left, AGAIN))
    return going


async def within(seconds: float, patience: float, run: Callable[[], Awaitable[object]]) -> None:
    """Run something for so many seconds at most, and go on without it if it ignores its cancellation.

    Args:
        seconds: After how many it is cancelled.
        patience: How many seconds after that it is left behind.
        run: What to run. What it raises is raised here.
    """
    task = Loose(run)
    with anyio.CancelScope(shield=True):
        if await _going([task], seconds):
            for left in await end([task], patience):
                left.leave()
    if task.error is not None:
        raise task.error


async def _going(tasks: Iterable[Loose], seconds: float) -> list[Loose]:
    """Wait until these tasks have ended, for so many seconds at most; those that have not."""
    waiting = {task._task: task for task in tasks}  # noqa: SLF001 of the same module
    _, pending = await asyncio.wait(waiting, timeout=seconds)
    return [waiting[task] for task in pending]
