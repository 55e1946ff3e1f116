from django.db import connection

from django_app.shop.models import Order
from iu_listen import on

#: The process ids of the sessions in which the handler has run.
pids: list[int] = []


@on("order_placed")
def send_mail(order: dict) -> None:
    Order.objects.filter(pk=order["id"]).update(total=0)
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        pids.append(cursor.fetchone()[0])
