"""The events of the shop."""

from pydantic import BaseModel


class OrderPlaced(BaseModel):
    """The payload of `order_placed`."""

    order: int
    product: str
    quantity: int
