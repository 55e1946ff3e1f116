"""The target of iu-listen: a coroutine that does nothing but record its call."""

from calls import called

from iu_listen import Delivery, target


@target("event_outbox")
async def nothing(delivery: Delivery) -> None:
    called(delivery.event.data["n"])
