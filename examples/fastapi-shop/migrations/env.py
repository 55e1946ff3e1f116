"""Runs the migrations, on the engine of the shop."""

import asyncio

from alembic import context
from shop.database import Base, engine
from sqlalchemy import Connection


def is_of_the_shop(name: str | None, kind: str, _parents: object) -> bool:
    """Whether a table belongs to the shop: `alembic revision --autogenerate` must not remove those of iu-listen."""
    return kind != "table" or name in Base.metadata.tables


def migrate(connection: Connection) -> None:
    """Run the migrations on a connection."""
    context.configure(connection, target_metadata=Base.metadata, include_name=is_of_the_shop)
    with context.begin_transaction():
        context.run_migrations()


async def main() -> None:
    """Open a connection, and run the migrations on it."""
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(main())
