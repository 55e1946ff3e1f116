"""The payloads of the events of the shop."""

from dataclasses import dataclass
from decimal import Decimal


@dataclass
class OrderPlaced:
    """The payload of order_placed."""

    id: int
    total: Decimal
