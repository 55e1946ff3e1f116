"""The operations of the shop; views and commands call them."""

from decimal import Decimal

from django.db import transaction

from iu_listen.django import emit
from shop.events import OrderPlaced
from shop.models import Order


def place_order(total: Decimal) -> Order:
    """Create an order together with its event: either both exist afterwards, or none."""
    with transaction.atomic():
        order = Order.objects.create(total=total)
        emit("order_placed", OrderPlaced(order.pk, order.total), subject=order.pk, subject_type="shop_order")
    return order
