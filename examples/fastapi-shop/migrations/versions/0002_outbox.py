"""The outbox: the neutral base and the package of iu-listen."""

import sqlalchemy as sa
from alembic import op

from iu_listen import migration_sql

revision = "0002"
down_revision = "0001"


def run(script: str) -> None:
    """Run a script of many statements in the transaction of the migration."""
    # SQLAlchemy prepares each statement for asyncpg, and PostgreSQL prepares no script: so asyncpg runs it itself.
    op.get_bind().connection.run_async(lambda connection: connection.execute(script))


def upgrade() -> None:
    """Create the outbox and the package."""
    kept = sa.inspect(op.get_bind()).has_table("event_outbox")
    run(migration_sql(base=None if kept else "neutral"))


def downgrade() -> None:
    """Remove the package. The base stays, because it has the events."""
    run(migration_sql(down=True))
