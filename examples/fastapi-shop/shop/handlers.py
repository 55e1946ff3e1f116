"""The handlers of events: `iu-listen run --app shop.handlers` calls them."""

from iu_listen import Reject, on
from shop.database import Order, Product, Session
from shop.events import OrderPlaced


@on("order_placed")
async def ship(placed: OrderPlaced) -> None:
    """Ship an order, once: a repeated delivery finds that it was shipped."""
    async with Session.begin() as session:
        order = await session.get_one(Order, placed.order, with_for_update=True)
        if order.shipped:
            return
        product = await session.get(Product, order.product, with_for_update=True)
        if product is None or product.stock < order.quantity:
            raise Reject(f"order {order.id}: fewer than {order.quantity} pieces of {order.product} in stock")
        product.stock -= order.quantity
        order.shipped = True
