from django.db import models


class Order(models.Model):
    total = models.IntegerField()

    def __str__(self) -> str:
        return f"order {self.pk}"
