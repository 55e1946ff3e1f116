"""The handlers of the events. The consumer finds this module, because the app is in INSTALLED_APPS."""

from django.db import transaction

from iu_listen import on
from shop.events import OrderPlaced
from shop.models import Order


@on("order_placed")
def send_mail(order: OrderPlaced) -> None:
    """Send the mail about an order. If the event arrives twice, as after a crash, there is one mail."""
    with transaction.atomic():
        if Order.objects.filter(pk=order.id, mailed=False).update(mailed=True):
            print(f"mail about order {order.id} of {order.total}", flush=True)
