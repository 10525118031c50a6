"""A waiting job says the most specific thing that it waits for."""

import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from api.queue_place import describe_place
from jobs.status import JobStatus

NOW = datetime.datetime.now(datetime.UTC)
FACTS = {
    "status": JobStatus.QUEUED,
    "num_gpus": 2,
    "not_before": NOW,
    "queue_position": 1,
    "largest_worker": 4,
    "num_able_workers": 1,
    "worker_problem": None,
    "key_running": 3,
    "key_limit": None,
}
UNKNOWN = dict.fromkeys(FACTS.keys() - {"status", "num_gpus", "not_before"})
IN_2099 = datetime.datetime(2099, 1, 2, 3, 4, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))


def describe(**facts: Any) -> tuple[int | None, str] | None:
    row: Any = SimpleNamespace(**FACTS | facts)
    place = describe_place(row)
    return None if place is None else (place.position, place.reason)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, "waits for a free worker"),
        ({"queue_position": 2}, "1 job comes before it"),
        ({"queue_position": 8}, "7 jobs come before it"),
        ({"num_able_workers": 0}, "waits for a free worker"),
        ({"num_able_workers": 0, "worker_problem": "its disk is full"}, "no worker can take it now: its disk is full"),
        ({"num_able_workers": 1, "worker_problem": "its disk is full"}, "waits for a free worker"),
        ({"key_limit": 4}, "waits for a free worker"),
        ({"key_limit": 3}, "its key may run 3 jobs at once, and runs 3"),
        ({"key_limit": 1, "key_running": 2}, "its key may run 1 job at once, and runs 2"),
        ({"largest_worker": 1}, "no running worker has 2 GPUs; the largest has 1"),
        ({"largest_worker": 0, "num_gpus": 1}, "no running worker has 1 GPU; the largest has 0"),
        ({"largest_worker": None, "num_able_workers": 0}, "no worker is running"),
        ({"not_before": IN_2099}, "waits until 2099-01-02 02:04:05 UTC to be tried again"),
    ],
)
def test_it_says_what_it_waits_for(facts: dict[str, Any], reason: str) -> None:
    assert describe(**facts) == ((FACTS | facts)["queue_position"], reason)


def test_the_first_of_several_reasons_is_the_most_specific() -> None:
    facts: dict[str, Any] = {"queue_position": 9, "num_able_workers": 0}
    found = []
    for more in (
        {"worker_problem": "its disk is full"},
        {"key_limit": 1},
        {"largest_worker": 1},
        {"largest_worker": None},
        {"not_before": IN_2099},
    ):
        facts |= more
        found.append(describe(**facts))

    words = ["no worker can take", "its key", "no running worker", "no worker is running", "waits until"]
    assert [place and place[1].startswith(word) for place, word in zip(found, words, strict=True)] == [True] * 5


def test_what_is_not_known_is_not_told() -> None:
    assert describe(**UNKNOWN) == (None, "waits for a free worker")
    assert describe(**UNKNOWN, num_gpus=0) == (None, "waits for a free worker")
    assert describe(**UNKNOWN | {"largest_worker": 1}) == (None, "no running worker has 2 GPUs; the largest has 1")


@pytest.mark.parametrize("status", sorted(set(JobStatus) - {JobStatus.QUEUED, JobStatus.VALIDATING}))
def test_a_job_that_does_not_wait_has_no_place(status: JobStatus) -> None:
    assert describe(status=status) is None


def test_a_job_may_wait_for_its_dataset() -> None:
    assert describe(status=JobStatus.VALIDATING) == (None, "waits for the check of its dataset")
