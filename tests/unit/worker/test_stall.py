"""When a run that lives counts as hung."""

import time

from jobs.settings import Settings
from tests.factories import wait_until
from worker.stall import StallClock

SETTINGS = Settings(start_seconds=50, stall_seconds=0.2)


def test_silence_while_training_is_a_stall_and_while_loading_is_not() -> None:
    clock = StallClock(SETTINGS)
    clock.look(num_events=1, last_step=0)

    assert not clock.is_stalled("training")
    wait_until(lambda: clock.is_stalled("training"), seconds=5)
    assert not clock.is_stalled("loading")


def test_any_event_is_progress() -> None:
    clock = StallClock(SETTINGS)
    wait_until(lambda: clock.is_stalled("training"), seconds=5)

    clock.look(num_events=1, last_step=0)

    assert not clock.is_stalled("training")


def test_a_run_that_nobody_reads_is_not_silent() -> None:
    """While the database is away its news wait on disk."""
    clock = StallClock(SETTINGS)
    wait_until(lambda: clock.is_stalled("training"), seconds=5)

    clock.look(num_events=0, last_step=0, is_blind=True)

    assert not clock.is_stalled("training")


def test_time_in_which_nobody_looked_is_not_silence() -> None:
    """A machine that stood still goes on with the worker first, and the run a moment later."""
    clock = StallClock(SETTINGS)
    clock.look(num_events=1, last_step=1)
    frozen_until = time.monotonic() + 1.2
    wait_until(lambda: time.monotonic() > frozen_until, seconds=5)

    clock.look(num_events=1, last_step=1)

    assert not clock.is_stalled("training")


def test_a_run_of_slow_steps_may_take_ten_of_them() -> None:
    clock = StallClock(SETTINGS)
    started = time.monotonic()
    for step in range(1, 6):
        wait_until(lambda step=step: time.monotonic() > started + 0.1 * step, seconds=5)  # type: ignore[misc]
        clock.look(num_events=step, last_step=step)

    assert 0.8 < clock.get_limit("training") < 3
    assert clock.get_limit("loading") == 50
