"""Fixtures for the tests of the trace export."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iu_listen.flow import trace_export
from telemetry.receiver import GrpcReceiver, Receiver


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses and small pages."""
    monkeypatch.setattr(trace_export, "PAGE", 50)
    monkeypatch.setattr(trace_export, "IDLE_PAUSE", 0.02)
    monkeypatch.setattr(trace_export, "RETRY_PAUSE", 0.2)
    monkeypatch.setattr(trace_export, "REFUSAL_PAUSE", 0.1)


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
