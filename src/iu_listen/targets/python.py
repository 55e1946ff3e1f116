"""Coroutines as targets, and where they are found."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from iu_listen.model.delivery import Delivery
from iu_listen.model.errors import ConfigurationError, words

#: What a user writes: it returns when the event has arrived, and raises as iu_listen.model.delivery says.
Coroutine = Callable[[Delivery], Awaitable[object]]


class PythonTarget:
    """A coroutine with the name by which routes ask for it. Satisfies flow.ports.Target.

    Args:
        name: ``target_ref`` of the routes that go to it.
        function: The coroutine.
    """

    def __init__(self, name: str, function: Coroutine) -> None:
        self.name = name
        self.function = function
        self.__doc__ = function.__doc__

    async def deliver(self, delivery: Delivery, /) -> None:
        """Run the coroutine."""
        await self.function(delivery)

    async def __call__(self, delivery: Delivery, /) -> object:
        """As if it had not been decorated."""
        return await self.function(delivery)

    async def aclose(self) -> None:
        """Nothing to let go of."""

    def __repr__(self) -> str:
        return f"target({self.name!r})"


def target(name: str) -> Callable[[Coroutine], PythonTarget]:
    """Make a coroutine the target of all routes of the kind ``workflow`` that name it.

    ::

        @target("crm")
        async def to_crm(delivery: Delivery) -> None:
            await crm.put(delivery.event.subject, delivery.event.data, key=delivery.idempotency_key)

    Raises:
        TypeError: it is no coroutine function.
    """

    def decorate(function: Coroutine) -> PythonTarget:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{getattr(function, '__qualname__', function)} is no coroutine function: write async def")
        return PythonTarget(name, function)

    return decorate


def load(app: str) -> list[PythonTarget]:
    """The targets that ``module`` holds, or the one, or the ones, that ``module:attribute`` is.

    Raises:
        ConfigurationError: there is no such module or attribute, or it holds no target.
    """
    name, _, attribute = app.partition(":")
    # What one works on lies in the current directory. Last, so that no file there takes the place of a library.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split(".") if attribute else ():
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != name and not name.startswith(f"{missing}."):
            frames = traceback.extract_tb(error.__traceback__)
            where = next((f"{Path(f.filename).name}, line {f.lineno}" for f in reversed(frames) if f.line), name)
            raise ConfigurationError(
                f"{name} wants the module {missing}, which is not installed ({where})",
                f"Install it. Try: python -m {name}",
            ) from error
        raise ConfigurationError(
            f"there is no module {error.name}", "--app is module or module:attribute, from here or installed."
        ) from error
    except AttributeError as error:
        raise ConfigurationError(
            f"{name} has no attribute {attribute}", "--app is module or module:attribute."
        ) from error
    except Exception as error:
        raise ConfigurationError(f"{name} cannot be imported: {words(error)}", f"Try: python -m {name}") from error
    if isinstance(found, PythonTarget):
        return [found]
    members: Iterable[Any] = vars(found).values() if inspect.ismodule(found) else found
    targets = [m for m in members if isinstance(m, PythonTarget)] if isinstance(members, Iterable) else []
    if not targets:
        raise ConfigurationError(f"{app} holds no target", "Write @target('name') above a coroutine.")
    return list(dict.fromkeys(targets))
