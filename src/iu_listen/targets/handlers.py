"""Handlers of event types: functions of an application, with conversions of payloads and exceptions."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any, Final, Literal
from uuid import UUID

import anyio.to_thread

from iu_listen.model.delivery import Delivery, DeliveryError, Reject, Unavailable
from iu_listen.model.errors import safe_message
from iu_listen.targets.python import PythonTarget, failures_of, group_of

#: Failure code of a payload that does not fit the type of the handler.
INVALID_PAYLOAD: Final = "invalid_payload"
#: The types that JSON does not have, each with the function that reads its text.
_FROM_TEXT: Final[dict[Any, tuple[Callable[[str], Any], str]]] = {
    date: (date.fromisoformat, "2026-12-24"),
    datetime: (datetime.fromisoformat, "2026-12-24T18:00:00+00:00"),
    time: (time.fromisoformat, "18:00:00"),
    Decimal: (Decimal, "12.50"),
    UUID: (UUID, "6f1b3a9e-8c55-4d3e-9f5c-2f0d3c1b7a90"),
}
Exceptions = tuple[type[BaseException], ...]
#: A function of an application: of a Delivery, or of a payload, or of a payload and a Delivery; or of lists of them.
Function = Callable[..., object]
Convert = Callable[[Any], Any]
#: What becomes of keys of a payload that its dataclass does not have.
UnknownKeys = Literal["reject", "ignore"]


class Handler(PythonTarget):
    """A function that handles the events of one type. Created by on().

    Args:
        event_type: The event type.
        name: Code of its route, and ``target_ref`` of the route.
        function: The function; one without ``async`` runs in a thread.
        reject: Exceptions after which the event becomes a dead letter at once, like Reject.
        unavailable: Exceptions that mean that the target accepts no event at present, like Unavailable.
        unknown: What becomes of keys of a payload that its dataclass does not have.
        group: Most deliveries of a call, for a function with lists; None: the default.
        group_wait: Longest time for which a call waits for a full group, in seconds.

    Raises:
        TypeError: The parameters of the function are none of the possible ones, ``unknown`` does not fit them, or an
            option for groups is set and they are not lists.
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        event_type: str,
        name: str,
        function: Function,
        reject: Exceptions = (),
        unavailable: Exceptions = (),
        unknown: UnknownKeys = "reject",
        group: int | None = None,
        group_wait: float = 0.0,
    ) -> None:
        self._arguments, lists = _arguments(function, unknown)
        super().__init__(name, in_thread(function), group_of(function, lists, group, group_wait), group_wait)
        self.event_type = event_type
        self.__wrapped__ = function
        self._reject, self._unavailable = reject, unavailable

    async def deliver(self, delivery: Delivery, /) -> None:
        """Call the function with its arguments, and translate its exceptions."""
        try:
            if self.group == 1:
                await self.function(*self._arguments(delivery))
            else:
                await super().deliver(delivery)
        except BaseException as error:
            translated = self._translated(error)
            if translated is error:
                raise
            raise translated from error

    async def deliver_group(self, deliveries: Sequence[Delivery], /) -> Mapping[Delivery, BaseException]:
        """Call the function with lists of its arguments, without the deliveries whose payloads do not fit."""
        failed: dict[Delivery, BaseException] = {}
        arguments: dict[Delivery, tuple[Any, ...]] = {}
        for delivery in deliveries:
            try:
                arguments[delivery] = self._arguments(delivery)
            except Reject as error:
                failed[delivery] = error
        if arguments:
            result = await self.function(*map(list, zip(*arguments.values(), strict=True)))
            marked = failures_of(result, arguments)
            failed |= {delivery: self._translated(error) for delivery, error in marked.items()}
        return failed

    def _translated(self, error: BaseException) -> BaseException:
        """The exception of iu_listen for an exception of the application; the same one if there is none."""
        if isinstance(error, DeliveryError) or not isinstance(error, (*self._reject, *self._unavailable)):
            return error
        outcome = Reject if isinstance(error, self._reject) else Unavailable
        return outcome(safe_message(error), code=_code(error))

    async def __call__(self, *arguments: Any) -> object:
        """Call the function directly, as without the decorator."""
        return await self.function(*arguments)

    def __repr__(self) -> str:
        return f"on({self.event_type!r}, name={self.name!r})"


def on(
    event_type: str,
    *,
    name: str | None = None,
    reject: Exceptions = (),
    unavailable: Exceptions = (),
    unknown: UnknownKeys = "reject",
    group: int | None = None,
    group_wait: float = 0.0,
) -> Callable[[Function], Handler]:
    """Make a function the handler of an event type, with a route of its own.

    ```python
    @on("order_placed", reject=(ValueError,))
    def send_mail(order: Order) -> None: ...
    ```

    The function has one of these parameter lists: a Delivery; the payload, with a dataclass, a model of pydantic or
    msgspec, ``dict`` or a TypedDict as its type; the payload and a Delivery. A payload that does not fit a dataclass or
    a model becomes a dead letter, ``invalid_payload``. A function without ``async`` runs in a thread. It runs inside
    the OpenTelemetry context of the attempt.

    If the parameters are lists, ``list[Delivery]``, ``list[Order]``, or both, the function is called with a group: the
    deliveries of its route that are ready at the same time. It returns None, or a dict with the deliveries that failed
    as keys and their exceptions as values. If it raises, each delivery of the group is passed to it in a call of its
    own, as lists with one element.

    Args:
        event_type: Type of the events.
        name: Code of the route. Default: the event type and the name of the function, ``order_placed.send_mail``.
        reject: A tuple of exception classes after which the event becomes a dead letter at once, like Reject.
        unavailable: A tuple of exception classes that mean that the target accepts no event at present, like
            Unavailable. All other exceptions count as those of target().
        unknown: What becomes of a payload with keys that the dataclass does not have: ``reject`` makes a dead letter,
            ``ignore`` leaves the keys out, also those of nested dataclasses. Models of pydantic and msgspec have a
            setting of their own.
        group: Most deliveries of a group, 2 to 1000; None: 100.
        group_wait: Longest time for which a call waits for a full group, 0 to 10 seconds. Default: it does not wait.

    Returns:
        The decorator. It makes a Handler of the function, which can still be called, with ``await``.

    Raises:
        TypeError: The parameters of the function are none of the possible ones, ``unknown`` does not fit them, or an
            option for groups is set and they are not lists.
        ValueError: An option is out of range.
    """

    def decorate(function: Function) -> Handler:
        default = f"{event_type}.{getattr(function, '__name__', 'handler')}"
        return Handler(event_type, name or default, function, reject, unavailable, unknown, group, group_wait)

    return decorate


def _code(error: BaseException) -> str:
    """The failure code for an exception: the name of its class, as ``value_error``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__).lower()


def in_thread(function: Function) -> Callable[..., Awaitable[object]]:
    """The function as a coroutine function; without ``async`` it runs in a thread."""
    if inspect.iscoroutinefunction(function):
        return function

    async def run(*arguments: Any) -> object:
        return await anyio.to_thread.run_sync(partial(function, *arguments), abandon_on_cancel=True)

    return run


def _arguments(function: Function, unknown: UnknownKeys) -> tuple[Callable[[Delivery], tuple[Any, ...]], bool]:
    """The function that makes the arguments of a handler from a delivery, and whether it takes lists of them."""
    hints = typing.get_type_hints(function)
    parameters = [
        p for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    kinds = [hints.get(p.name, Delivery if number else None) for number, p in enumerate(parameters)]
    lists = bool(kinds) and all(typing.get_origin(kind) is list for kind in kinds)
    if lists:
        kinds = [typing.get_args(kind)[0] for kind in kinds]
    if unknown not in typing.get_args(UnknownKeys):
        raise TypeError(f"unknown must be 'reject' or 'ignore', not {unknown!r}")
    payload_type = kinds[0] if kinds else None
    if unknown == "ignore" and (payload_type is Delivery or not dataclasses.is_dataclass(payload_type)):
        raise TypeError(
            "unknown='ignore' is for a payload with a dataclass as its type; models of pydantic and msgspec have a "
            "setting of their own, and a dict has all keys"
        )
    if len(kinds) == 1 and kinds[0] in (None, Delivery):
        return (lambda delivery: (delivery,)), lists
    if not kinds or len(kinds) > 2 or kinds[1:] not in ([], [Delivery]) or typing.get_origin(kinds[0]) is list:
        raise TypeError(
            f"{getattr(function, '__qualname__', function)} must have one of the parameter lists "
            "(delivery), (payload: Type) or (payload: Type, delivery), or the same with list[Delivery] and list[Type]"
        )
    convert = _converter(payload_type, unknown)

    def converted(delivery: Delivery) -> tuple[Any, ...]:
        try:
            payload = convert(delivery.event.data)
        except (ValueError, TypeError) as error:
            name = getattr(payload_type, "__name__", payload_type)
            raise Reject(f"the payload does not fit {name}: {_reason(error)}", code=INVALID_PAYLOAD) from error
        return (payload, delivery)[: len(kinds)]

    return converted, lists


class _Misfit(ValueError):
    """A payload that does not fit a dataclass; its text contains no values of the payload."""


def _reason(error: Exception) -> str:
    """Why a payload does not fit, without its values, which may be confidential."""
    if isinstance(error, _Misfit) or type(error).__module__.partition(".")[0] == "msgspec":
        return str(error)
    if callable(errors := getattr(error, "errors", None)):
        found = errors(include_url=False, include_context=False, include_input=False)
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:5])
    return safe_message(error)


def _converter(payload_type: Any, unknown: UnknownKeys) -> Convert:
    """The function that turns a decoded payload into the type; it raises ValueError or TypeError if that fails."""
    if payload_type in (dict, Any, object, None) or typing.get_origin(payload_type) is dict:
        return lambda data: data
    if typing.is_typeddict(payload_type):
        return lambda data: data
    if hasattr(payload_type, "model_validate"):
        return payload_type.model_validate  # type: ignore[no-any-return]
    if hasattr(payload_type, "__struct_fields__"):
        import msgspec  # noqa: PLC0415 only users of msgspec have it

        return partial(msgspec.convert, type=payload_type)
    if dataclasses.is_dataclass(payload_type):
        return partial(_dataclass, payload_type, unknown)
    raise TypeError(f"{payload_type} is no dataclass and no model of pydantic or msgspec, and not dict")


def _value(path: str, wanted: Any, unknown: UnknownKeys, value: Any) -> Any:
    """A value of a payload as the type of a field; the texts that emit() writes for dates and decimals are read."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        others = [one for one in arguments if one is not type(None)]
        if value is None and len(others) < len(arguments):
            return None
        return _value(path, others[0], unknown, value) if len(others) == 1 else value
    if origin is list and isinstance(value, list) and arguments:
        return [_value(f"{path}[{number}]", arguments[0], unknown, one) for number, one in enumerate(value)]
    wanted = origin or wanted
    if dataclasses.is_dataclass(wanted):
        return _dataclass(wanted, unknown, value, path)
    if wanted in _FROM_TEXT and isinstance(value, str):
        read, example = _FROM_TEXT[wanted]
        try:
            return read(value)
        except (ValueError, ArithmeticError) as error:
            raise _Misfit(f"{path} must be {wanted.__name__}, as in {example!r}") from error
    if wanted is Decimal and type(value) is int:
        return Decimal(value)
    if isinstance(wanted, type) and not isinstance(value, (float, int) if wanted is float else wanted):
        example = f", as in {_FROM_TEXT[wanted][1]!r}" if wanted in _FROM_TEXT else ""
        raise _Misfit(f"{path} must be {wanted.__name__}{example}, not {type(value).__name__}")
    return value


def _dataclass(payload_type: Any, unknown: UnknownKeys, data: Any, path: str = "") -> Any:
    """An object of a dataclass; nested dataclasses, and lists of them, are built, too.

    Args:
        payload_type: The dataclass.
        unknown: What becomes of keys that it does not have.
        data: The decoded payload, or a part of it.
        path: The place of this part in the payload, for messages; empty: it is the payload.
    """
    of, prefix = (f" of {path}", f"{path}.") if path else ("", "")
    if not isinstance(data, dict):
        raise _Misfit(f"{path or 'the payload'} must be an object, not {type(data).__name__}")
    hints = typing.get_type_hints(payload_type)
    if unknown == "reject" and (others := data.keys() - hints.keys()):
        names = ", ".join(sorted(others))
        raise _Misfit(f"unknown keys{of}: {names} (to leave them out: @on(..., unknown='ignore'))")
    values = {key: _value(prefix + key, hints[key], unknown, value) for key, value in data.items() if key in hints}
    required = [
        f.name for f in dataclasses.fields(payload_type)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing := [name for name in required if name not in values]:
        raise _Misfit(f"missing keys{of}: {', '.join(missing)}")
    return payload_type(**values)
