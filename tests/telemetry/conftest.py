"""Fixtures for the tests of the trace export."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iu_listen.flow import trace_export
from telemetry.receiver import GrpcReceiver, Receiver


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses and small pages."""
    monkeypatch.setattr(trace_export, "PAGE_ROWS", 50)
    monkeypatch.setattr(trace_export, "IDLE_EXPORT_PAUSE", 0.02)
    monkeypatch.setattr(trace_export, "MAX_EXPORT_BACKOFF", 0.2)
    monkeypatch.setattr(trace_export, "MAX_REFUSAL_BACKOFF", 0.1)


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
