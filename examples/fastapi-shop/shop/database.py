"""The tables of the shop, and the sessions to them."""

import os

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: iu-listen and the shop use the same database.
engine = create_async_engine(make_url(os.environ["IU_LISTEN_DSN"]).set(drivername="postgresql+asyncpg"))
Session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The base of all tables."""


class Product(Base):
    """A product, and the number of pieces in stock."""

    __tablename__ = "products"

    name: Mapped[str] = mapped_column(primary_key=True)
    stock: Mapped[int]


class Order(Base):
    """An order of a customer."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    product: Mapped[str]
    quantity: Mapped[int]
    shipped: Mapped[bool] = mapped_column(default=False)
