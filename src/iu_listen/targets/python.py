"""Coroutines as targets, and the search for them in modules."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from iu_listen.model.delivery import Delivery
from iu_listen.model.errors import ConfigurationError, safe_message
from iu_listen.model.user_code import place

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


class ReportedTarget(PythonTarget):
    """A target whose failed attempts are reported, for development and tests.

    Args:
        inner: The target.
        report: Called with the delivery and the exception that the target raised, unless the call was cancelled.
    """

    def __init__(self, inner: PythonTarget, report: Callable[[Delivery, BaseException], None]) -> None:
        super().__init__(inner.name, inner.function)
        self._inner, self._report = inner, report

    async def deliver(self, delivery: Delivery, /) -> None:
        """Deliver, and report an exception."""
        try:
            await self._inner.deliver(delivery)
        except (Exception, SystemExit) as error:
            self._report(delivery, error)
            raise


def load(app: str, *, required: bool = True) -> list[PythonTarget]:
    """Load targets: all targets of ``module``, or the target or the list of targets in ``module:attribute``.

    Args:
        app: The module, or module and attribute.
        required: Whether a module without a target is an error. A list may be empty.

    Raises:
        ConfigurationError: The module or the attribute does not exist or cannot be imported, or has no target. The
            message names the line in the code of the application; the cause is the exception of the import.
    """
    name, _, attribute = app.partition(":")
    found: Any = _imported(name)
    for part in attribute.split(".") if attribute else ():
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ConfigurationError(
                f"{name} has no attribute {attribute}", "--app must be module or module:attribute."
            ) from error
        except ConfigurationError:
            raise
        except (Exception, SystemExit) as error:
            raise _not_importable(name, error) from error
    if isinstance(found, PythonTarget):
        return [found]
    members: Iterable[Any] = vars(found).values() if inspect.ismodule(found) else found
    targets = [m for m in members if isinstance(m, PythonTarget)] if isinstance(members, Iterable) else []
    if not targets and required and found != []:
        raise ConfigurationError(
            f"{app} contains no target",
            "Decorate a function with @on('event_type'), or a coroutine with @target('name').",
        )
    return list(dict.fromkeys(targets))


def _not_importable(name: str, error: BaseException) -> ConfigurationError:
    return ConfigurationError(f"{name} cannot be imported: {_import_failure(error)}", f"Check with: python -m {name}")


def _imported(name: str) -> Any:
    # The module of a user is often in the current directory. It is appended at the end of the path, so that no file in
    # it replaces a library.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ConfigurationError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != name and not name.startswith(f"{missing}."):
            raise ConfigurationError(
                f"{name} imports the module {missing}, which is not installed ({place(error)})",
                f"Install it, then check with: python -m {name}",
            ) from error
        raise ConfigurationError(
            f"there is no module {error.name}",
            "--app must be module or module:attribute, in the current directory or installed.",
        ) from error
    except (Exception, SystemExit) as error:
        raise _not_importable(name, error) from error


def _import_failure(error: BaseException) -> str:
    """Why an import failed: the class and the place, and the text if it consists of names or comes from the parser."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    words = f"{type(error).__name__}: {text}" if isinstance(error, (ImportError, NameError, SyntaxError)) else ""
    return f"{words} ({place(error)})" if words else safe_message(error)
