"""@on: functions as handlers of event types, with payloads, threads and exceptions of the application."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
import threading
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import pytest
from opentelemetry import context as otel

from iu_listen import Delivery, Failed, Reject, Unavailable, on
from iu_listen.producer.payload import payload_json
from iu_listen.targets.handlers import Handler
from iu_listen.targets.python import load
from targets.brokers import delivery

pytestmark = pytest.mark.asyncio


@dataclasses.dataclass
class Line:
    """A part of an order."""

    sku: str


@dataclasses.dataclass
class Order:
    """A typed payload."""

    total: float
    line: Line
    note: str = ""


def sent(payload: str, **more: Any) -> Delivery:
    """A delivery with this payload."""
    one = delivery()
    return dataclasses.replace(one, event=dataclasses.replace(one.event, payload=payload), **more)


GOOD = '{"total": 5, "line": {"sku": "a"}}'


async def test_the_parameter_lists():
    """A handler gets a delivery, a payload, or both, as its parameters say."""
    seen = []

    @on("order_placed")
    async def whole(delivery: Delivery) -> None:
        seen.append(delivery.event.data)

    @on("order_placed")
    async def plain(delivery) -> None:
        seen.append(type(delivery))

    @on("order_placed")
    async def typed(order: Order) -> None:
        seen.append(order)

    @on("order_placed")
    async def both(order: dict, delivery: Delivery) -> None:
        seen.append((order["total"], delivery.attempt))

    for handler in (whole, plain, typed, both):
        await handler.deliver(sent(GOOD))
    order = Order(5, Line("a"))
    assert seen == [{"total": 5, "line": {"sku": "a"}}, Delivery, order, (5, 1)]
    assert (typed.name, typed.event_type) == ("order_placed.typed", "order_placed")


async def test_a_function_without_async_runs_in_a_thread_within_the_context():
    """A synchronous handler runs in another thread, with the OpenTelemetry context of the attempt.

    Fails when: it blocks the event loop, or the context stays behind.
    """
    seen = []

    @on("order_placed")
    def handler(order: Order) -> None:
        seen.append((threading.current_thread() is threading.main_thread(), otel.get_value("attempt")))

    token = otel.attach(otel.set_value("attempt", 7))
    try:
        await handler.deliver(sent(GOOD))
    finally:
        otel.detach(token)
    assert seen == [(False, 7)]


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ('{"total": 5}', "missing keys: line"),
        ('{"total": "5", "line": {"sku": "a"}}', "total must be float, not str"),
        ('{"total": 5, "line": {"sku": 1}}', "line.sku must be str, not int"),
        (
            '{"total": 5, "line": {"sku": "a"}, "secret": "canary"}',
            "unknown keys: secret (to leave them out: @on(..., unknown='ignore'))",
        ),
        ("[1]", "the payload must be an object, not list"),
        ("5", "the payload must be an object, not int"),
    ],
)
async def test_a_payload_that_does_not_fit_is_rejected(payload, says):
    """A payload that does not fit the type is rejected with the code invalid_payload; values are not in the reason."""

    @on("order_placed")
    async def handler(order: Order) -> None:
        raise AssertionError("it was called")

    with pytest.raises(Reject) as error:
        await handler.deliver(sent(payload))
    assert error.value.code == "invalid_payload"
    assert error.value.reason == f"the payload does not fit Order: {says}"
    assert "canary" not in error.value.reason


async def test_unknown_keys_are_ignored_if_the_handler_says_so():
    """With unknown="ignore" keys that a dataclass lacks are left out, also nested ones; missing keys are still refused.

    Fails when: the option does not reach a nested dataclass, or hides other misfits.
    """
    seen = []

    @on("order_placed", unknown="ignore")
    async def handler(order: Order) -> None:
        seen.append(order)

    await handler.deliver(sent('{"total": 5, "line": {"sku": "a", "colour": "red"}, "later": 1}'))
    assert seen == [Order(5, Line("a"))]
    with pytest.raises(Reject, match="missing keys: line"):
        await handler.deliver(sent('{"total": 5, "lines": []}'))


@pytest.mark.parametrize(("unknown", "payload"), [("ignore", dict), ("ignore", Delivery), ("drop", Order)])
async def test_an_option_for_unknown_keys_that_has_no_effect_is_refused(unknown, payload):
    """unknown="ignore" for another type than a dataclass, and another word, are refused at the definition."""

    async def function(order) -> None: ...

    function.__annotations__ = {"order": payload}
    with pytest.raises(TypeError, match="unknown"):
        on("order_placed", unknown=unknown)(function)


async def test_a_typed_dict_gets_the_payload_unchanged():
    """A handler with a TypedDict gets the payload as a dict, with all keys."""

    class Placed(TypedDict):
        total: float

    seen = []

    async def function(order) -> None:
        seen.append(order)

    function.__annotations__ = {"order": Placed}
    await on("order_placed")(function).deliver(sent('{"total": 5, "more": 1}'))
    assert seen == [{"total": 5, "more": 1}]


async def test_texts_of_dates_and_decimals_are_read():
    """A dataclass that emit() writes is read again: dates, decimals, UUIDs, lists of dataclasses and None.

    Fails when: a value stays a text, or an element of a list a dict.
    """

    @dataclasses.dataclass
    class Invoice:
        id: UUID
        due: dt.date
        at: dt.datetime
        amount: Decimal
        lines: list[Line] | None
        note: str | None = None

    seen = []

    async def function(invoice) -> None:
        seen.append(invoice)

    function.__annotations__ = {"invoice": Invoice}
    handler = on("invoice_issued")(function)
    invoice = Invoice(
        UUID(int=5), dt.date(2026, 1, 2), dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC), Decimal("1.50"), [Line("a")]
    )
    await handler.deliver(sent(payload_json("invoice_issued", invoice)))
    none = dataclasses.replace(invoice, lines=None)
    await handler.deliver(sent(payload_json("invoice_issued", none)))
    assert seen == [invoice, none]
    wrong = json.loads(payload_json("invoice_issued", invoice)) | {"due": "canary"}
    with pytest.raises(Reject, match="due must be date, as in '2026-12-24'"):
        await handler.deliver(sent(json.dumps(wrong)))
    for change, says in (
        ({"amount": 1.5}, "amount must be Decimal, as in '12.50', not float"),
        ({"lines": [{"sku": "a"}, {"sku": 1}]}, "lines[1].sku must be str, not int"),
        ({"lines": ["a"]}, "lines[0] must be an object, not str"),
        ({"lines": [{}]}, "missing keys of lines[0]: sku"),
        ({"lines": [{"sku": "a", "x": 1}]}, "unknown keys of lines[0]: x "),
    ):
        with pytest.raises(Reject, match=re.escape(says)):
            await handler.deliver(sent(json.dumps(json.loads(payload_json("invoice_issued", invoice)) | change)))
    await handler.deliver(sent(json.dumps(json.loads(payload_json("invoice_issued", invoice)) | {"amount": 3})))
    assert seen[-1].amount == Decimal(3)


async def test_models_with_their_own_validation():
    """A model with model_validate() is validated by it; the values of its errors are left out."""

    class Problem(ValueError):
        def errors(self, **_: Any) -> list[dict[str, Any]]:
            return [{"loc": ("line", "sku"), "msg": "must be longer"}]

    class Model:
        @classmethod
        def model_validate(cls, data: Any) -> Any:
            if data["total"] < 0:
                raise Problem("canary")
            return data

    seen = []

    async def function(order) -> None:
        seen.append(order)

    function.__annotations__ = {"order": Model}
    handler = on("order_placed")(function)
    await handler.deliver(sent('{"total": 1}'))
    with pytest.raises(Reject, match=r"line\.sku: must be longer") as error:
        await handler.deliver(sent('{"total": -1}'))
    assert (seen, "canary" in error.value.reason) == ([{"total": 1}], False)


async def test_exceptions_of_the_application():
    """Named exceptions reject the event or mean an outage; others, and those of iu_listen, keep their meaning."""

    class SmtpDown(Exception):
        pass

    raised: list[BaseException] = [
        ValueError("canary"), SmtpDown("canary"), KeyError("x"), Failed("later", code="x"), Reject("no"),
    ]  # fmt: skip

    @on("order_placed", reject=(ValueError,), unavailable=(SmtpDown,))
    def handler(delivery: Delivery) -> None:
        raise raised[delivery.attempt - 1]

    outcomes = []
    for number in range(len(raised)):
        with pytest.raises(Exception) as error:
            await handler.deliver(sent(GOOD, attempt=number + 1))
        outcomes.append((type(error.value), getattr(error.value, "code", "")))
        assert "canary" not in getattr(error.value, "reason", "")
    assert outcomes == [
        (Reject, "value_error"), (Unavailable, "smtp_down"), (KeyError, ""), (Failed, "x"), (Reject, "reject"),
    ]  # fmt: skip


async def test_wrong_parameter_lists_are_refused_at_definition():
    """A function with other parameters is refused where it is defined, with the possible lists."""

    def nothing() -> None: ...

    def three(a: dict, b: Delivery, c: int) -> None: ...

    def scalar(a: int) -> None: ...

    for wrong in (nothing, three, scalar):
        with pytest.raises(TypeError, match=r"payload|dataclass"):
            on("order_placed")(wrong)


async def test_handlers_are_found_in_a_module(tmp_path, monkeypatch):
    """load() finds handlers beside targets, as run --app does; a handler can be called directly."""
    (tmp_path / "shop_handlers.py").write_text(
        "from iu_listen import on, target\n\n"
        "@on('order_placed', name='mail')\ndef send(order: dict): return order\n\n"
        "@target('crm')\nasync def crm(delivery): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = load("shop_handlers")
    assert sorted(t.name for t in found) == ["crm", "mail"]
    (handler,) = [t for t in found if isinstance(t, Handler)]
    assert await handler({"total": 1}) == {"total": 1}
