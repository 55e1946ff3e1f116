"""The settings of a project of Django. A test sets the databases: DATABASE_DSN, or the fixture ``project``."""

import os

import psycopg

#: Names of the parameters of libpq, by the settings of Django.
NAMES = {"NAME": "dbname", "USER": "user", "HOST": "host", "PORT": "port", "PASSWORD": "password"}


def database(dsn: str) -> dict[str, str]:
    """The settings of Django for a connection string."""
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    return {"ENGINE": "django.db.backends.postgresql"} | {key: parts.get(name, "") for key, name in NAMES.items()}


DSN = os.environ.get("DATABASE_DSN", "postgresql:///nothing")
DATABASES = {
    "default": database(DSN),
    "other": database(DSN),
    "lite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
DATABASE_ROUTERS = ["django_app.settings.Router"]
INSTALLED_APPS = ["iu_listen.django", "django_app.shop"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


class Router:
    """Keeps iu-listen out of the databases that ``excluded`` names."""

    excluded: set[str] = set()

    def allow_migrate(self, db, app_label, **hints):
        return not (app_label == "iu_listen" and db in self.excluded)
