"""Token buckets, by a clock of the test's own."""

import pytest

from api.rate_limits import Buckets, RateLimits
from jobs.errors import LimitReached
from jobs.settings import Settings


def test_a_bucket_gives_its_burst_and_then_what_flows_in() -> None:
    now = 0.0
    buckets = Buckets(2, 4, clock=lambda: now)

    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert buckets.take("b") == 0
    now = 0.5
    assert buckets.peek("a") == 0
    assert [buckets.take("a") for _ in range(2)] == [0, 0.5]
    now = 1000
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]


def test_a_rate_of_nothing_limits_nothing() -> None:
    buckets = Buckets(0, 0)

    assert {buckets.take("a") for _ in range(1000)} == {0}


def test_full_buckets_are_forgotten() -> None:
    now = 0.0
    buckets = Buckets(1, 1, clock=lambda: now)
    for n in range(10_000):
        buckets.take(str(n))
    now = 10.0

    buckets.take("another")

    assert len(buckets._levels) == 1


def test_a_limit_says_when_to_come_back() -> None:
    limits = RateLimits(Settings(writes_per_second=0.01, reads_per_second=1))

    limits.check_request("key", is_read=False)
    with pytest.raises(LimitReached) as refusal:
        limits.check_request("key", is_read=False)

    assert refusal.value.code == "rate_limit_reached"
    assert 90 <= refusal.value.details["retry_after_seconds"] <= 100
    limits.check_request("key", is_read=True)


def test_a_good_key_goes_on_where_a_neighbour_is_wrong_too_often() -> None:
    limits = RateLimits(Settings(failures_per_minute=0.6))
    limits.check_address("here", b"unknown")
    for _ in range(2):
        limits.note_failure("here")
    limits.note_success(b"good")

    with pytest.raises(LimitReached, match="too many wrong API keys"):
        limits.check_address("here", b"unknown")
    limits.check_address("here", b"good")
    limits.check_address("there", b"unknown")
