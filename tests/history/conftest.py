"""Moves databases between two clusters: one with lower transaction ids than their own, or one with higher ones."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from clusters import FAR, cluster, dump, place, psql, restore
from conftest import TestServer
from iu_listen.embedded.keeper import Server


@dataclass(frozen=True)
class Pair:
    """Two clusters: databases move from ``source`` to ``target``.

    Attributes:
        beyond: The stamps of the source lie beyond the transaction ids that the target has reached.
    """

    source: Server
    target: Server
    beyond: bool
    files: Path
    names: set[str] = field(default_factory=set)

    def new(self) -> str:
        """Name of a new, empty database of the source."""
        name = f"iu_{secrets.token_hex(6)}"
        psql(self.source, f"create database {name}")
        self.names.add(name)
        return name

    def travel(self, database: str, *options: str) -> str:
        """Dump a database and restore it in the target under its own name; return the new connection string."""
        file = self.files / f"{database}.dump"
        dump(self.source, database, file)
        return restore(self.target, database, file, *options)

    def back(self) -> Pair:
        """The pair in the opposite direction."""
        return replace(self, source=self.target, target=self.source, beyond=not self.beyond)

    def drop(self) -> None:
        """Drop all databases of the pair in both clusters."""
        for end in (self.source, self.target):
            for name in self.names:
                psql(end, f"drop database if exists {name} with (force)")


@pytest.fixture(scope="session")
def far(server: TestServer) -> Iterator[Server]:
    """A cluster of the same version as the shared one, with transaction ids far ahead of it."""
    if server.embedded is None:
        pytest.skip("the other cluster must be of the same version")
    with cluster(server.embedded.major, next_xid=FAR, wal_level="logical", max_prepared_transactions="10") as far:
        yield far


@pytest.fixture(params=["lower", "higher"])
def pair(server: TestServer, far: Server, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A pair with a target that has lower, or higher, transaction ids than the stamps of the events."""
    assert server.embedded is not None
    with place(far.data) as files:
        there = Pair(far, server.embedded, True, files)
        yield there if request.param == "lower" else there.back()
        there.drop()
