"""@on and @target with lists: functions that take several deliveries in one call."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from iu_listen import Delivery, Failed, Reject, Unavailable, on, target
from iu_listen.targets.handlers import Handler
from iu_listen.targets.python import DEFAULT_GROUP, PythonTarget
from iu_listen.telemetry.context import activate_group
from targets.brokers import delivery
from targets.test_handlers import GOOD, Line, Order, sent

pytestmark = pytest.mark.asyncio


async def test_the_parameter_lists_of_groups():
    """A function with lists gets deliveries, payloads, or both, in one call; without async it runs in a thread."""
    seen: list[Any] = []

    @on("order_placed", group=7, group_wait=0.5)
    async def whole(deliveries: list[Delivery]) -> None:
        seen.append([one.event.data["total"] for one in deliveries])

    @on("order_placed")
    async def typed(orders: list[Order]) -> None:
        seen.append(orders)

    @on("order_placed")
    def both(orders: list[dict], deliveries: list[Delivery]) -> None:
        assert threading.current_thread() is not threading.main_thread()
        seen.append([(order["total"], one.attempt) for order, one in zip(orders, deliveries, strict=True)])

    @target("crm")
    async def plain(deliveries: list[Delivery]) -> None:
        seen.append(len(deliveries))

    group = [sent(GOOD), sent(GOOD, attempt=2)]
    for one in (whole, typed, both, plain):
        assert await one.deliver_group(group) == {}
        await one.deliver(group[0])
    order = Order(5, Line("a"))
    assert seen == [[5, 5], [5], [order, order], [order], [(5, 1), (5, 2)], [(5, 1)], 2, 1]
    assert (whole.group, whole.group_wait) == (7, 0.5)
    assert (plain.group, typed.group, typed.group_wait) == (DEFAULT_GROUP, DEFAULT_GROUP, 0)
    await plain(group)
    assert seen[-1] == 2


async def test_each_payload_is_validated():
    """A payload that does not fit rejects its own delivery, and the function gets the others.

    Fails when: one invalid payload fails its group, or the function is called with nothing.
    """
    seen = []

    @on("order_placed")
    async def handler(orders: list[Order]) -> None:
        seen.append(len(orders))

    good, bad = sent(GOOD), sent('{"total": "canary"}', id=1)
    failed = await handler.deliver_group([bad, good])
    assert {one.id: (type(error), error.code) for one, error in failed.items()} == {1: (Reject, "invalid_payload")}
    assert list(await handler.deliver_group([bad])) == [bad]
    with pytest.raises(Reject, match="does not fit Order"):
        await handler.deliver(bad)
    assert seen == [1]


async def test_a_function_returns_the_deliveries_that_failed():
    """The exceptions that a function returns have the same meaning as raised ones, in a group and alone."""

    class SmtpDown(Exception):
        pass

    errors: list[BaseException] = [ValueError("canary"), SmtpDown("canary"), KeyError("x"), Failed("later", code="x")]

    @on("order_placed", reject=(ValueError,), unavailable=(SmtpDown,))
    async def handler(deliveries: list[Delivery]) -> dict[Delivery, BaseException]:
        answers = await asyncio.gather(*(send(one) for one in deliveries), return_exceptions=True)
        return {one: error for one, error in zip(deliveries, answers, strict=True) if error}

    async def send(one: Delivery) -> None:
        if one.id:
            raise errors[one.id - 1]

    group = [sent(GOOD, id=n) for n in range(5)]
    wanted = {1: (Reject, "value_error"), 2: (Unavailable, "smtp_down"), 3: (KeyError, ""), 4: (Failed, "x")}
    failed = await handler.deliver_group(group)
    assert {one.id: (type(error), getattr(error, "code", "")) for one, error in failed.items()} == wanted
    assert not any("canary" in getattr(error, "reason", "") for error in failed.values())
    await handler.deliver(group[0])
    for number, (kind, _) in wanted.items():
        with pytest.raises(kind):
            await handler.deliver(group[number])


@pytest.mark.parametrize("result", [[], ["id"], 3, {"key": ValueError()}, {delivery(): ValueError()}])
async def test_any_other_result_is_refused(result):
    """A function that returns something else fails, because a list of failures must not count as a success.

    An exception that is no instance is refused as well.
    """

    @target("crm")
    async def function(deliveries: list[Delivery]) -> object:
        return result

    one = sent(GOOD)
    for call in (function.deliver(one), function.deliver_group([one, sent(GOOD, id=1)])):
        with pytest.raises(
            Failed, match=f"returned a {type(result).__name__}; it must return None, or a dict"
        ) as error:
            await call
        assert error.value.code == "invalid_result"

    @target("crm")
    async def classes(deliveries: list[Delivery]) -> object:
        return {deliveries[0]: Reject}

    with pytest.raises(Failed, match="returned a dict"):
        await classes.deliver(one)


def decorated(function: Any, **options: Any) -> list[PythonTarget]:
    return [on("order_placed", **options)(function), target("crm", **options)(function)]


async def test_wrong_options_are_refused_at_definition():
    """Options for groups need a function with a list, and have ranges; a list beside a single parameter is refused."""

    async def single(delivery: Delivery) -> None: ...

    async def untyped(deliveries) -> None: ...

    async def several(deliveries: list[Delivery]) -> None: ...

    async def mixed(orders: list[Order], delivery: Delivery) -> None: ...

    for function in (single, untyped):
        assert [one.group for one in decorated(function)] == [1, 1]
        for options in ({"group": 5}, {"group_wait": 0.1}):
            for decorator in (on("order_placed", **options), target("crm", **options)):
                with pytest.raises(TypeError, match=r"group_wait need a function with a list"):
                    decorator(function)
    for options in ({"group": 1}, {"group": 1001}, {"group": 2.5}, {"group_wait": -1}, {"group_wait": 10.5}):
        for decorator in (on("order_placed", **options), target("crm", **options)):
            with pytest.raises(ValueError, match="group must be 2 to 1000 deliveries, and group_wait 0 to 10 seconds"):
                decorator(several)
    with pytest.raises(TypeError, match=r"the same with list\[Delivery\]"):
        on("order_placed")(mixed)


async def test_annotations_of_a_target_are_not_evaluated():
    """@target recognizes a list in the text of an annotation whose names exist for the type checker only."""
    names: dict[str, Any] = {"target": target}
    exec(
        "from __future__ import annotations\n"
        "@target('crm')\nasync def several(deliveries: list[Unknown]) -> None: ...\n"
        "@target('crm')\nasync def single(delivery: Unknown) -> None: ...\n",
        names,
    )
    assert (names["several"].group, names["single"].group) == (DEFAULT_GROUP, 1)
    assert not isinstance(names["several"], Handler)


async def test_the_context_of_a_group(monkeypatch):
    """With a tracer provider in the program, a group runs in a span of its own, with a link to each attempt.

    Without one the context is that of the first attempt. The text of an exception is not recorded.

    Fails when: the calls that the function makes are in no trace, or an attempt has no link.
    """
    group = [delivery(n) for n in range(3)]
    with activate_group(group):
        assert format(trace.get_current_span().get_span_context().span_id, "016x") in group[0].traceparent
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with activate_group(group), provider.get_tracer("shop").start_as_current_span("insert"):
        pass
    with pytest.raises(KeyError), activate_group(group):
        raise KeyError("canary")
    insert, span, failed = exporter.get_finished_spans()
    assert (insert.parent, span.parent) == (span.context, None)
    assert [f"00-{link.context.trace_id:032x}-{link.context.span_id:016x}-01" for link in span.links] == [
        one.traceparent for one in group
    ]
    assert (span.name, span.kind, span.attributes["messaging.batch.message_count"]) == (
        "process event_outbox", trace.SpanKind.CONSUMER, 3,
    )  # fmt: skip
    assert (span.status.is_ok, failed.status.is_ok, "canary" in failed.to_json()) == (True, False, False)
