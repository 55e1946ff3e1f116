"""Coroutines as targets, and the search for them in modules."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from iu_listen.model.delivery import Delivery
from iu_listen.model.errors import ConfigurationError, safe_message

#: A target in the code of a user: it returns after a successful delivery, and raises the exceptions that
#: iu_listen.model.delivery describes.
Coroutine = Callable[[Delivery], Awaitable[object]]


class PythonTarget:
    """A coroutine function with the name that routes use. Implements flow.ports.Target.

    Args:
        name: ``target_ref`` of the routes that deliver to it.
        function: The coroutine function.
    """

    def __init__(self, name: str, function: Coroutine) -> None:
        self.name = name
        self.function = function
        self.__doc__ = function.__doc__

    async def deliver(self, delivery: Delivery, /) -> None:
        """Run the coroutine."""
        await self.function(delivery)

    async def __call__(self, delivery: Delivery, /) -> object:
        """Call the coroutine function directly, as without the decorator."""
        return await self.function(delivery)

    async def aclose(self) -> None:
        """Do nothing: the target holds no resources."""

    def __repr__(self) -> str:
        return f"target({self.name!r})"


def target(name: str) -> Callable[[Coroutine], PythonTarget]:
    """Make a coroutine function the target of the routes of the kind ``workflow`` that have this name.

    ```python
    @target("crm")
    async def to_crm(delivery: Delivery) -> None:
        await crm.put(delivery.event.subject, delivery.event.data, key=delivery.idempotency_key)
    ```

    The function has one parameter, a Delivery. It returns when it has accepted the event, and raises Reject, Failed or
    Unavailable otherwise. An exception that means that the target cannot be reached, for example a ConnectionError,
    counts as Unavailable, and every other one as Failed. The result of the function is ignored.

    Args:
        name: ``target_ref`` of the routes that deliver to it.

    Returns:
        The decorator. It makes a PythonTarget of the function, which can still be called, with ``await``.

    Raises:
        TypeError: The decorated object is not a coroutine function.
    """

    def decorate(function: Coroutine) -> PythonTarget:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{getattr(function, '__qualname__', function)} is not a coroutine function: define it with async def"
            )
        return PythonTarget(name, function)

    return decorate


def load(app: str, *, required: bool = True) -> list[PythonTarget]:
    """Load targets: all targets of ``module``, or the target or the list of targets in ``module:attribute``.

    Args:
        app: The module, or module and attribute.
        required: Whether a module without a target is an error. A list may be empty.

    Raises:
        ConfigurationError: The module or the attribute does not exist or cannot be imported, or has no target.
    """
    name, _, attribute = app.partition(":")
    # The module of a user is often in the current directory. It is appended at the end of the path, so that no file in
    # it replaces a library.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split(".") if attribute else ():
            found = getattr(found, part)
    except ConfigurationError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != name and not name.startswith(f"{missing}."):
            frames = traceback.extract_tb(error.__traceback__)
            where = next((f"{Path(f.filename).name}, line {f.lineno}" for f in reversed(frames) if f.line), name)
            raise ConfigurationError(
                f"{name} imports the module {missing}, which is not installed ({where})",
                f"Install it, then check with: python -m {name}",
            ) from error
        raise ConfigurationError(
            f"there is no module {error.name}",
            "--app must be module or module:attribute, in the current directory or installed.",
        ) from error
    except AttributeError as error:
        raise ConfigurationError(
            f"{name} has no attribute {attribute}", "--app must be module or module:attribute."
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"{name} cannot be imported: {safe_message(error)}", f"Check with: python -m {name}"
        ) from error
    if isinstance(found, PythonTarget):
        return [found]
    members: Iterable[Any] = vars(found).values() if inspect.ismodule(found) else found
    targets = [m for m in members if isinstance(m, PythonTarget)] if isinstance(members, Iterable) else []
    if not targets and required and found != []:
        raise ConfigurationError(f"{app} contains no target", "Decorate a coroutine function with @target('name').")
    return list(dict.fromkeys(targets))
