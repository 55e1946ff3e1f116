"""The settings of the project. Its database is that of IU_LISTEN_DSN."""

import os

from psycopg.conninfo import conninfo_to_dict

options = conninfo_to_dict(os.environ.get("IU_LISTEN_DSN", "dbname=shop"))
DATABASES = {
    "default": {"ENGINE": "django.db.backends.postgresql", "NAME": options.pop("dbname"), "OPTIONS": options},
}
INSTALLED_APPS = ["iu_listen.django", "shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
