"""Operations for migrations: they install the SQL package, and register event types."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation

from iu_listen.admin.event_types import require_name
from iu_listen.django.database import belongs_to, package_state, statement
from iu_listen.install.script import migration_sql
from iu_listen.model.errors import Refused
from iu_listen.model.routing import DEFAULT_DOMAIN
from iu_listen.model.version import SCHEMA, VERSION


class _DatabaseOperation(Operation):
    """An operation that changes no models, in the databases of PostgreSQL that have the app."""

    def state_forwards(self, _app_label: str, _state: Any) -> None:
        """Change nothing: there are no models."""

    def database_forwards(self, _app_label: str, schema_editor: BaseDatabaseSchemaEditor, *_states: Any) -> None:
        """Make the change."""
        if self._concerns(schema_editor.connection):
            self._forwards(schema_editor)

    def database_backwards(self, _app_label: str, schema_editor: BaseDatabaseSchemaEditor, *_states: Any) -> None:
        """Take the change back."""
        if self._concerns(schema_editor.connection):
            self._backwards(schema_editor)

    @staticmethod
    def _concerns(connection: BaseDatabaseWrapper) -> bool:
        return connection.vendor == "postgresql" and belongs_to(connection.alias)

    def _forwards(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        """Make the change in a database that has the app."""
        raise NotImplementedError

    def _backwards(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        """Take the change back in a database that has the app."""
        raise NotImplementedError


def _install(schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Install the package, or upgrade it to the present schema."""
    state = package_state(schema_editor.connection)
    if state.version is None:
        schema_editor.execute(migration_sql(base="neutral" if state.missing else None), params=None)
    elif state.version < SCHEMA:
        schema_editor.execute(migration_sql(since=str(state.version)), params=None)


class InstallPackage(_DatabaseOperation):
    """Install the SQL package of the installed iu-listen, on the neutral base if the database has no base.

    In a database with an older schema it upgrades the package, and in one with this or a newer schema it does nothing.
    So the first migration of the app has this operation, and each later schema version has a migration with
    UpgradePackage: a new database gets the present schema by the first one, and an existing one by the last one.

    The reversal removes the package. The tables of the base stay, with the events.

    Raises:
        ConfigurationError: The database has the schema of another major version.
    """

    def _forwards(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        _install(schema_editor)

    def _backwards(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        """Remove the package.

        Raises:
            Refused: The database has the schema of another version of iu-listen.
        """
        found = package_state(schema_editor.connection).version
        if found not in (None, SCHEMA):
            raise Refused(
                f"the database has schema {found}, and iu-listen {VERSION} can remove schema {SCHEMA}",
                "Remove it with the version of iu-listen that has this schema.",
            )
        if found:
            schema_editor.execute(migration_sql(down=True), params=None)

    def describe(self) -> str:
        """The text that ``migrate --plan`` shows."""
        return f"Install the SQL package of iu-listen, schema {SCHEMA}"


class UpgradePackage(InstallPackage):
    """Upgrade the SQL package. The reversal keeps the schema, with which earlier versions of iu-listen work, too."""

    def _backwards(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        """Do nothing."""


class AddEventTypes(_DatabaseOperation):
    """Register event types, for a migration of an app of the project.

    ```python
    operations = [AddEventTypes("order_placed", "order_paid")]
    ```

    In a database without an outbox it installs the package first. So the migration needs no dependency on the app
    iu_listen, and a reversal of that app reverses no migration of the project.

    The reversal removes the event types; their events stay.

    Args:
        names: The event types.

    Raises:
        ConfigurationError: A text is not usable as a name.
    """

    def __init__(self, *names: str) -> None:
        for name in names:
            require_name("the event type", name)
        self.names = names

    def _forwards(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        """Register the event types that are not registered."""
        if package_state(schema_editor.connection).missing:
            _install(schema_editor)
        for name in self.names:
            schema_editor.execute(*statement("event_type/add", DEFAULT_DOMAIN, name, "event", "immediate", "info"))

    def _backwards(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        """Remove the event types."""
        missing = package_state(schema_editor.connection).missing
        for name in () if missing else self.names:
            schema_editor.execute(*statement("event_type/remove", DEFAULT_DOMAIN, name))

    def describe(self) -> str:
        """The text that ``migrate --plan`` shows."""
        return f"Register the event types {', '.join(self.names)}"
