"""Installs the present schema in a new database."""

from typing import ClassVar

from django.db import migrations
from django.db.migrations.operations.base import Operation

from iu_listen.django.operations import InstallPackage


class Migration(migrations.Migration):
    """Installs the SQL package."""

    operations: ClassVar[list[Operation]] = [InstallPackage()]
