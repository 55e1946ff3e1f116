"""Facts: parsing the answer of the worker function."""

from __future__ import annotations

from iu_listen.model.routing import STATE_OF_STATUS, Batch, State


def test_a_full_answer_is_read_whole():
    """Every figure of the answer is in the batch."""
    answer = {
        "status": "ran", "seen": 5, "attempts_written": 4, "skipped": 1, "dead_lettered": 2, "more": True,
        "cursor_created_at": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    batch = Batch.from_answer(answer, 0.5)

    assert batch == Batch(
        status="ran", seen=5, attempts=4, skipped=1, dead_lettered=2, more=True,
        seconds=0.5,
    )  # fmt: skip


def test_a_refusal_is_read_too():
    """An answer that only gives the reason of a refusal has no figures."""
    batch = Batch.from_answer({"status": "foreign_history", "reason": "anchor_missing", "seen": 0}, 0.0)

    assert (batch.seen, batch.more, batch.reason) == (0, False, "anchor_missing")


def test_every_status_has_its_state():
    """Each status that the function can return has a state of the consumer."""
    assert STATE_OF_STATUS == {
        "ran": State.IDLE,
        "master_gate_closed": State.GATE_CLOSED,
        "worker_gate_closed": State.GATE_CLOSED,
        "foreign_history": State.REFUSING,
        "standby": State.REFUSING,
    }
