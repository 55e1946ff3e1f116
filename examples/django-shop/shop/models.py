"""The tables of the shop."""

from django.db import models


class Order(models.Model):
    """An order, and whether its customer has got a mail."""

    total = models.DecimalField(max_digits=9, decimal_places=2)
    mailed = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"order {self.pk} of {self.total}"
