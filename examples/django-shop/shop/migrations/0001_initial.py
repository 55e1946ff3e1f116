"""The table of the orders, and the type of their events."""

from django.db import migrations, models

from iu_listen.django.operations import AddEventTypes


class Migration(migrations.Migration):
    """Creates the tables of the shop."""

    operations = [
        migrations.CreateModel(
            "Order",
            [
                ("id", models.BigAutoField(primary_key=True, serialize=False, verbose_name="ID", auto_created=True)),
                ("total", models.DecimalField(max_digits=9, decimal_places=2)),
                ("mailed", models.BooleanField(default=False)),
            ],
        ),
        AddEventTypes("order_placed"),
    ]
