"""Random faults over many jobs: the short form of bench/chaos.py."""

from bench.chaos import run_schedules

NUM_SCHEDULES = 10
SEED = 20261122


def test_ten_random_schedules_break_no_promise() -> None:
    tally = run_schedules(NUM_SCHEDULES, SEED)

    assert dict(tally.broken) == {}
    assert tally.faults.total() >= 5 * NUM_SCHEDULES
    assert tally.detect_seconds
