"""The decisions to poll, pause or become idle: pure functions, so each state of the
diagram in wake_policy.py can be reached."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iu_listen.flow.wake_policy import ARM_WAIT_MAX, BUSY_BATCH, BUSY_GAP, Act, WakePolicy

LINGER, BUSY, POLL = 0.05, 0.002, 0.5
NEAR = BUSY_GAP / 2
FAR = BUSY_GAP * 2


def policy(*, listening: bool = True, armed: bool = False) -> WakePolicy:
    made = WakePolicy(LINGER, BUSY, POLL)
    made.listener_changed(listening)
    if armed:
        made.arm_result(True)
    return made


def test_idle_with_a_bell_it_arms_then_sleeps():
    """After a batch that found no event the consumer arms, and once armed it becomes idle."""
    idle = policy()
    assert idle.next(0.0)[0] is Act.ARM
    idle.arm_result(True)
    assert idle.next(0.0)[0] is Act.SLEEP


def test_without_a_bell_it_polls():
    """Without a listener session the consumer neither arms nor becomes idle, and polls once in each poll interval."""
    deaf = policy(listening=False)
    deaf.batch_ran(0, 1.0)
    assert deaf.next(1.0) == (Act.PAUSE, POLL)


def test_without_a_bell_a_busy_spell_is_polled_faster():
    """Without a listener session a busy period shortens the pause to the busy interval, until no events come."""
    deaf = policy(listening=False)
    deaf.batch_ran(BUSY_BATCH, 1.0)
    assert deaf.next(1.0) == (Act.PAUSE, BUSY)
    assert deaf.next(1.0 + LINGER) == (Act.PAUSE, POLL)


def test_single_events_far_apart_keep_it_armed():
    """Events with gaps above BUSY_GAP are answered by notifications, however many there are.

    Fails when: every event disarms, so that the events of a slow stream are no longer routed within a millisecond.
    """
    slow = policy(armed=True)
    for n in range(100):
        slow.batch_ran(1, n * FAR)
        assert slow.next(n * FAR)[0] is Act.SLEEP


def test_two_close_events_in_a_row_disarm():
    """The second event in a row that follows closely on another begins a busy period.

    Fails when: a busy period does not disarm, so that under load every commit notifies.
    """
    busy = policy(armed=True)
    busy.batch_ran(1, 0.0)
    busy.batch_ran(1, NEAR)
    assert busy.next(NEAR)[0] is Act.SLEEP
    busy.batch_ran(1, 2 * NEAR)
    assert busy.next(2 * NEAR)[0] is Act.DISARM
    busy.disarmed()
    assert busy.next(2 * NEAR) == (Act.PAUSE, BUSY)


def test_a_gap_begins_the_count_anew():
    """Two close pairs of events with a gap between them are no busy period."""
    broken = policy(armed=True)
    for at in (0.0, NEAR, NEAR + FAR, 2 * NEAR + FAR):
        broken.batch_ran(1, at)
    assert broken.next(2 * NEAR + FAR)[0] is Act.SLEEP


@pytest.mark.parametrize(("seen", "act"), [(BUSY_BATCH - 1, Act.SLEEP), (BUSY_BATCH, Act.DISARM)])
def test_a_big_batch_is_a_busy_spell_by_itself(seen, act):
    """A batch of BUSY_BATCH events disarms at once, one event fewer does not."""
    burst = policy(armed=True)
    burst.batch_ran(seen, 3.0)
    assert burst.next(3.0)[0] is act


def test_slow_looks_that_find_several_events_are_a_busy_spell():
    """If a batch takes longer than BUSY_GAP, its events count by their mean distance.

    Fails when: only the time between batches counts, so that a slow database is notified by every commit.
    """
    slow = policy(armed=True)
    for n in range(3):
        slow.batch_ran(5, n * FAR)
    assert slow.next(2 * FAR)[0] is Act.DISARM


def test_it_lingers_as_long_as_events_come_and_then_arms():
    """A busy period ends when no event has come for the linger time, and then the consumer arms.

    Fails when: the linger is taken out.
    """
    busy = policy()
    busy.batch_ran(BUSY_BATCH, 0.0)
    assert busy.next(LINGER * 0.9) == (Act.PAUSE, BUSY)
    busy.batch_ran(0, LINGER * 0.9)
    assert busy.next(LINGER * 0.9) == (Act.PAUSE, BUSY)
    assert busy.next(LINGER)[0] is Act.ARM


def test_an_empty_look_is_no_event():
    """Batches that find no event neither prolong a busy period nor count towards one."""
    quiet = policy(armed=True)
    for n in range(10):
        quiet.batch_ran(0, n * NEAR)
    assert quiet.next(10 * NEAR)[0] is Act.SLEEP


def test_refused_arming_waits_longer_each_time_and_never_longer_than_the_limit():
    """Each refused arming lengthens the pause before the next poll, from the busy interval to ARM_WAIT_MAX.

    Fails when: the pause does not grow (the consumer uses a whole processor) or grows for ever (events are late).
    """
    refused, pauses = policy(), []
    for _ in range(30):
        assert refused.next(0.0)[0] is Act.ARM
        refused.arm_result(False)
        act, pause = refused.next(0.0)
        assert act is Act.PAUSE
        pauses.append(pause)
    assert pauses[0] == BUSY
    assert pauses[-1] == ARM_WAIT_MAX
    assert all(a < b or b == ARM_WAIT_MAX for a, b in pairwise(pauses))


def test_a_granted_arming_forgets_earlier_refusals():
    """After one success the next refusal begins with the shortest pause again."""
    again = policy()
    for _ in range(30):
        again.arm_result(False)
    again.arm_result(True)
    again.disarmed()
    again.arm_result(False)
    assert again.next(0.0) == (Act.PAUSE, BUSY)


def test_a_new_bell_is_not_armed():
    """A listener session that ends releases its lock, and the next one begins unarmed.

    Fails when: listener_changed() keeps ``armed``, so that the consumer is idle and no notification is sent.
    """
    lost = policy(armed=True)
    lost.listener_changed(False)
    assert lost.next(0.0) == (Act.PAUSE, POLL)
    lost.listener_changed(True)
    assert lost.next(0.0)[0] is Act.ARM


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("looked"), st.integers(0, 100), st.floats(0, 0.1)),
            st.tuples(st.just("arm_tried"), st.booleans()),
            st.tuples(st.just("listener_changed"), st.booleans()),
            st.tuples(st.just("disarmed")),
        )
    )
)
def test_it_sleeps_only_by_an_armed_bell(steps):
    """After any steps the consumer is idle only while it is armed, and arms only with a listener session."""
    any_history, now = policy(listening=False), 0.0
    for step in steps:
        match step:
            case "looked", seen, later:
                now += later
                any_history.batch_ran(seen, now)
            case "arm_tried", granted:
                any_history.arm_result(granted and any_history.listening)
            case "listener_changed", listening:
                any_history.listener_changed(listening)
            case _:
                any_history.disarmed()
    act, seconds = any_history.next(now)
    assert act is not Act.SLEEP or (any_history.listening and any_history.armed)
    assert act not in (Act.ARM, Act.DISARM) or any_history.listening
    assert (act is Act.PAUSE) == (seconds > 0)
