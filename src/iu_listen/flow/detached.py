"""Detached tasks: they run user code, which may ignore its cancellation, and they can be abandoned.

A task group waits for each of its tasks, even for one that ignores its cancellation. So user code is awaited only in
tasks outside of all task groups. This is the only module of the flow that uses asyncio directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import anyio

#: Interval at which the cancellation of a task that goes on is repeated, in seconds.
CANCEL_INTERVAL: Final = 0.1


class DetachedTask:
    """A task outside of all task groups. It starts with a copy of the current context, like the tasks of a group.

    Args:
        run: The asynchronous function that it executes.
        ended: Called when the task has ended: by a return, an error or a cancellation.

    Attributes:
        error: Error that ``run`` raised; None: it raised none, or it was cancelled.
        cancelled: Whether the task was cancelled. It may still run.
    """

    def __init__(self, run: Callable[[], Awaitable[object]], ended: Callable[[], None] = lambda: None) -> None:
        self.error: Exception | None = None
        self.cancelled: bool = False
        #: The scope of ``run``, and its shield; None: the task has not begun.
        self._scopes: tuple[anyio.CancelScope, anyio.CancelScope] | None = None
        self._task = asyncio.create_task(self._run(run))
        self._task.add_done_callback(lambda _: ended())

    async def _run(self, run: Callable[[], Awaitable[object]]) -> None:
        # If user code enters a cancel scope and never leaves it, the exits of these two scopes raise. That error does
        # not belong to ``run``, so it is not caught below. The scopes are made here, because this object may be made in
        # a callback outside of any task, and there anyio does not always find the event loop.
        with anyio.CancelScope() as scope, anyio.CancelScope() as shield:
            self._scopes = scope, shield
            if self.cancelled:
                self.cancel()
            try:
                await run()
            except Exception as error:  # noqa: BLE001 within() raises it, or the owner of the task reads it
                self.error = error

    def cancel(self) -> None:
        """Cancel the task once: its present await raises, unless user code has shielded it.

        A cancel scope repeats the cancellation in every iteration of the event loop, so code that ignores it would use
        a whole processor. Therefore the shield is set again as soon as the cancellation is delivered.
        """
        self.cancelled = True
        if self._scopes is not None:
            scope, shield = self._scopes
            shield.shield = False
            scope.cancel()
            shield.shield = True

    def abandon(self) -> None:
        """Abandon the task: it goes on, and ``asyncio.run`` does not wait for it."""
        # The only way to exclude a task from those that asyncio.run waits for. It is documented for task implementers.
        asyncio._unregister_task(self._task)  # noqa: SLF001


async def end(tasks: Iterable[DetachedTask], seconds: float) -> list[DetachedTask]:
    """Cancel these tasks repeatedly for at most ``seconds`` seconds. Returns the tasks that still run."""
    running = list(tasks)
    until = anyio.current_time() + seconds
    while running and (remaining := until - anyio.current_time()) > 0:
        for task in running:
            task.cancel()
        running = await _still_running(running, min(remaining, CANCEL_INTERVAL))
    return running


async def within(seconds: float, abandon_after: float, run: Callable[[], Awaitable[object]]) -> None:
    """Run an asynchronous function with a deadline, and abandon it if it ignores its cancellation.

    Args:
        seconds: Time after which the function is cancelled, in seconds.
        abandon_after: Time from the cancellation until the function is abandoned, in seconds.
        run: The function.

    Raises:
        Exception: the error that ``run`` raised. A cancellation at the deadline raises nothing.
    """
    task = DetachedTask(run)
    with anyio.CancelScope(shield=True):
        if await _still_running([task], seconds):
            for running in await end([task], abandon_after):
                running.abandon()
    if task.error is not None:
        raise task.error


async def _still_running(tasks: Iterable[DetachedTask], seconds: float) -> list[DetachedTask]:
    """Wait at most ``seconds`` seconds until these tasks have ended. Returns the tasks that still run."""
    waiting = {task._task: task for task in tasks}  # noqa: SLF001 of the same module
    _, pending = await asyncio.wait(waiting, timeout=seconds)
    return [waiting[task] for task in pending]
