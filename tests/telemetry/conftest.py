"""Fixtures for the tests of the trace export."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iu_listen.flow import export
from telemetry.receiver import GrpcReceiver, Receiver


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses and small pages."""
    monkeypatch.setattr(export, "PAGE", 50)
    monkeypatch.setattr(export, "IDLE_PAUSE", 0.02)
    monkeypatch.setattr(export, "RETRY_PAUSE", 0.2)
    monkeypatch.setattr(export, "REFUSAL_PAUSE", 0.1)


@pytest.fixture
def receiver(quick: None) -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.stop()


@pytest.fixture
def over_grpc(quick: None) -> Iterator[GrpcReceiver]:
    found = GrpcReceiver()
    yield found
    found.stop()
