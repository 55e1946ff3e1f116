"""Coroutines as targets, and the search for them in modules."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from iu_listen.model.delivery import Delivery, Failed
from iu_listen.model.errors import ConfigurationError, safe_message
from iu_listen.model.user_code import place

#: A target in the code of a user: it returns after a successful delivery, and raises the exceptions that
#: iu_listen.model.delivery describes. Its parameter is a Delivery, or a list of them.
Coroutine = Callable[[Delivery], Awaitable[object]] | Callable[[list[Delivery]], Awaitable[object]]
#: Most deliveries of a call of a function whose parameter is a list.
DEFAULT_GROUP: Final = 100
MAX_GROUP: Final = 1000
#: Longest wait for a full group, in seconds.
MAX_GROUP_WAIT: Final = 10.0


class PythonTarget:
    """A coroutine function with the name that routes use. Implements flow.ports.GroupTarget.

    Args:
        name: ``target_ref`` of the routes that deliver to it.
        function: The coroutine function.
        group: Most deliveries of a call; 1: the parameter of the function is one Delivery, and not a list.
        group_wait: Longest time for which a call waits for further deliveries, in seconds.
    """

    def __init__(self, name: str, function: Coroutine, group: int = 1, group_wait: float = 0.0) -> None:
        self.name = name
        self.function: Callable[..., Awaitable[object]] = function
        self.group: int = group
        self.group_wait: float = group_wait
        self.__doc__ = function.__doc__

    async def deliver(self, delivery: Delivery, /) -> None:
        """Run the coroutine."""
        if self.group == 1:
            await self.function(delivery)
        else:
            for error in (await self.deliver_group([delivery])).values():
                raise error

    async def deliver_group(self, deliveries: Sequence[Delivery], /) -> Mapping[Delivery, BaseException]:
        """Run the coroutine with a list of deliveries. Returns the deliveries that failed, with their exceptions."""
        return failures_of(await self.function(list(deliveries)), deliveries)

    async def __call__(self, delivery: Any, /) -> object:
        """Call the coroutine function directly, as without the decorator."""
        return await self.function(delivery)

    async def aclose(self) -> None:
        """Do nothing: the target holds no resources."""

    def __repr__(self) -> str:
        return f"target({self.name!r})"


def failures_of(result: object, deliveries: Iterable[Delivery]) -> Mapping[Delivery, BaseException]:
    """The result of a function with a list of deliveries: those that failed, each with its exception.

    Raises:
        Failed: The function returned something else than None or such a mapping.
    """
    if result is None:
        return {}
    if (
        isinstance(result, Mapping)
        and result.keys() <= set(deliveries)
        and all(isinstance(error, BaseException) for error in result.values())
    ):
        return result
    raise Failed(
        f"the function returned a {type(result).__name__}; it must return None, or a dict with the failed deliveries "
        "as keys and their exceptions as values",
        code="invalid_result",
    )


def group_of(function: Callable[..., object], takes_list: bool, group: int | None, group_wait: float) -> int:
    """The number of deliveries of a call, from the options of a decorator.

    Raises:
        TypeError: The function does not take a list, but an option for groups is set.
        ValueError: An option is out of range.
    """
    if not takes_list:
        if group is None and not group_wait:
            return 1
        name = getattr(function, "__qualname__", function)
        raise TypeError(f"group and group_wait need a function with a list, as in {name}(deliveries: list[Delivery])")
    found = DEFAULT_GROUP if group is None else group
    if type(found) is not int or not 2 <= found <= MAX_GROUP or not 0 <= group_wait <= MAX_GROUP_WAIT:
        raise ValueError(f"group must be 2 to {MAX_GROUP} deliveries, and group_wait 0 to {MAX_GROUP_WAIT:g} seconds")
    return found


def _takes_list(function: Callable[..., object]) -> bool:
    """Whether the first parameter of a function is annotated as a list.

    The text of an annotation is not evaluated, because its names may exist for the type checker only.
    """
    first = next(iter(inspect.signature(function).parameters.values()), None)
    annotation = first.annotation if first else None
    if isinstance(annotation, str):
        return annotation.startswith(("list[", "List["))
    return typing.get_origin(annotation) is list


def target(name: str, *, group: int | None = None, group_wait: float = 0.0) -> Callable[[Coroutine], PythonTarget]:
    """Make a coroutine function the target of the routes of the kind ``workflow`` that have this name.

    ```python
    @target("crm")
    async def to_crm(delivery: Delivery) -> None:
        await crm.put(delivery.event.subject, delivery.event.data, key=delivery.idempotency_key)
    ```

    The function has one parameter, a Delivery. It returns when it has accepted the event, and raises Reject, Failed or
    Unavailable otherwise. An exception that means that the target cannot be reached, for example a ConnectionError,
    counts as Unavailable, and every other one as Failed. The result of the function is ignored.

    A function whose parameter is a ``list[Delivery]`` is called with a group: the deliveries of one route that are
    ready at the same time. It returns None, or a dict with the deliveries that failed as keys and their exceptions as
    values. If it raises, each delivery of the group is passed to it in a call of its own, as a list with one element.

    Args:
        name: ``target_ref`` of the routes that deliver to it.
        group: Most deliveries of a group, 2 to 1000; None: 100.
        group_wait: Longest time for which a call waits for a full group, 0 to 10 seconds. Default: it does not wait.

    Returns:
        The decorator. It makes a PythonTarget of the function, which can still be called, with ``await``.

    Raises:
        TypeError: The decorated object is not a coroutine function; or an option for groups is set, and the parameter
            of the function is not annotated as a list.
        ValueError: An option is out of range.
    """

    def decorate(function: Coroutine) -> PythonTarget:
        checked: Any = function
        if not inspect.iscoroutinefunction(checked):
            raise TypeError(
                f"{getattr(function, '__qualname__', function)} is not a coroutine function: define it with async def"
            )
        return PythonTarget(name, function, group_of(function, _takes_list(function), group, group_wait), group_wait)

    return decorate


class ReportedTarget(PythonTarget):
    """A target whose failed attempts are reported, for development and tests.

    Args:
        inner: The target.
        report: Called with the delivery and the exception that the target raised, unless the call was cancelled.
    """

    def __init__(self, inner: PythonTarget, report: Callable[[Delivery, BaseException], None]) -> None:
        super().__init__(inner.name, inner.function, inner.group, inner.group_wait)
        self._inner, self._report = inner, report

    async def deliver(self, delivery: Delivery, /) -> None:
        """Deliver, and report an exception."""
        try:
            await self._inner.deliver(delivery)
        except (Exception, SystemExit) as error:
            self._report(delivery, error)
            raise

    async def deliver_group(self, deliveries: Sequence[Delivery], /) -> Mapping[Delivery, BaseException]:
        """Deliver, and report the failed deliveries. If the group fails as a whole, its deliveries are called alone."""
        failures = await self._inner.deliver_group(deliveries)
        for delivery, error in failures.items():
            self._report(delivery, error)
        return failures


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
