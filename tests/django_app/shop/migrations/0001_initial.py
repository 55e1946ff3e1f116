from django.db import migrations, models

from iu_listen.django.operations import AddEventTypes


class Migration(migrations.Migration):
    operations = [
        migrations.CreateModel(
            "Order", [("id", models.BigAutoField(primary_key=True)), ("total", models.IntegerField())]
        ),
        AddEventTypes("order_placed"),
    ]
