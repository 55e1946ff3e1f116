"""The configuration of the app."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register

from iu_listen.django.checks import check_databases


class IuListenConfig(AppConfig):
    """The app ``iu_listen``, which has no models."""

    name = "iu_listen.django"
    label = "iu_listen"
    verbose_name: str = "iu-listen"

    def ready(self) -> None:
        """Register the checks of databases; ``manage.py check --database default`` and ``migrate`` run them."""
        register(check_databases, Tags.database)
