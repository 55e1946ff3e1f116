"""The tests of the shop: manage.py test creates a database for them, with the outbox."""

import json
from decimal import Decimal

from django.db import connection
from django.test import TestCase

from shop.services import place_order


class OrderTest(TestCase):
    """Orders and their events."""

    def test_an_order_has_an_event(self) -> None:
        """The event is written together with the order."""
        order = place_order(Decimal("9.90"))
        with connection.cursor() as cursor:
            cursor.execute("select event_type, event_subject_ref, safe_payload from event_outbox")
            [(event_type, subject, payload)] = cursor.fetchall()
        assert (event_type, subject) == ("order_placed", str(order.pk))
        assert json.loads(payload) == {"id": order.pk, "total": "9.90"}
