"""The API: it takes orders, and writes an event for each one."""

from fastapi import FastAPI
from pydantic import BaseModel, PositiveInt
from sqlalchemy import select

from iu_listen import emit
from shop.database import Order, Product, Session
from shop.events import OrderPlaced

app = FastAPI()


class NewOrder(BaseModel):
    """The body of a request for an order."""

    product: str
    quantity: PositiveInt


@app.post("/orders", status_code=201)
async def place_order(new: NewOrder) -> OrderPlaced:
    """Write the order and its event in one transaction: both, or neither."""
    async with Session.begin() as session:
        order = Order(product=new.product, quantity=new.quantity)
        session.add(order)
        await session.flush()  # The order has its id from here on.
        placed = OrderPlaced(order=order.id, product=order.product, quantity=order.quantity)
        await emit(session, "order_placed", placed, subject=order.id)
    return placed


@app.get("/orders")
async def list_orders() -> list[dict[str, object]]:
    """Every order, and whether it was shipped."""
    async with Session() as session:
        orders = await session.scalars(select(Order).order_by(Order.id))
        return [{"order": order.id, "product": order.product, "shipped": order.shipped} for order in orders]


@app.put("/products/{name}", status_code=204)
async def set_stock(name: str, stock: int) -> None:
    """Set the number of pieces in stock."""
    async with Session.begin() as session:
        await session.merge(Product(name=name, stock=stock))
