"""GPU hours, CPU hours and tokens per key, tag, model and status: from attempts, also those that run."""

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func

from jobs.database import Sessions, tenant_transaction
from jobs.models import Attempt, Job, Metric
from jobs.repository import Identity, usage
from jobs.settings import Settings
from tests.integration.rows import add_dataset, add_key, submit

NOON = datetime.datetime(2026, 1, 15, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
DAY = (NOON - 12 * HOUR, NOON + 12 * HOUR)
AddJob = Callable[..., str]


@pytest.fixture
def add_job(api: Sessions, worker: Sessions, identity: Identity, settings: Settings) -> AddJob:
    """A job of some key, with attempts from and to so many hours after noon (None: it runs), each with tokens."""
    dataset_id = add_dataset(api, identity)

    def add(
        attempts: list[tuple[float, float | None]], num_gpus: int = 0, who: Identity = identity, **fields: Any
    ) -> str:
        job_id = str(submit(api, who, settings, dataset_id, **fields).id)
        with worker.begin() as session:
            session.get_one(Job, job_id).num_gpus = num_gpus
            for number, (start, end) in enumerate(attempts, 1):
                times = {"started_at": NOON + start * HOUR, "ended_at": None if end is None else NOON + end * HOUR}
                common = {"job_id": job_id, "tenant_id": who.tenant_id}
                session.add(Attempt(**common, number=number, lease_epoch=number, worker_id="w", hostname="h", **times))
        return job_id

    return add


def add_metrics(worker: Sessions, job_id: str, *rows: tuple[int, float, int, int]) -> None:
    """Each: attempt, hours after noon, step, tokens."""
    with worker.begin() as session:
        for seq, (attempt, hours, step, tokens) in enumerate(rows, 1):
            common = {"job_id": job_id, "tenant_id": "a", "seq": seq, "epoch": 0.0, "values": {}}
            session.add(Metric(**common, attempt=attempt, step=step, tokens=tokens, created_at=NOON + hours * HOUR))


def read(
    api: Sessions, column: Any = usage.KEY, times: tuple[datetime.datetime, datetime.datetime] = DAY, **of: Any
) -> dict[str | None, tuple[float, ...]]:
    """Jobs, attempts, GPU hours, CPU hours and tokens by value."""
    with tenant_transaction(api, of.pop("tenant", "a")) as session:
        rows = usage.list_usage(session, column, since=times[0], until=times[1], **of)
    return {
        row.value: (row.jobs, row.attempts, round(row.gpu_hours, 6), round(row.cpu_hours, 6), row.tokens)
        for row in rows
    }


def test_hours_are_those_of_all_attempts_times_their_gpus(api: Sessions, identity: Identity, add_job: AddJob) -> None:
    other = add_key(api)
    add_job([(0, 1), (2, 2.5)], num_gpus=4)
    add_job([(0, 3)], who=other)
    add_job([])

    assert read(api) == {identity.key_id: (1, 2, 6.0, 0.0, 0), other.key_id: (1, 1, 0.0, 3.0, 0)}
    assert list(read(api)) == [identity.key_id, other.key_id]
    assert read(api, key_id=other.key_id) == {other.key_id: (1, 1, 0.0, 3.0, 0)}
    assert read(api, tenant="b") == {}


def test_only_the_part_within_the_time_counts(api: Sessions, identity: Identity, add_job: AddJob) -> None:
    add_job([(-2, 2), (5, 6)], num_gpus=2)

    def hours(start: float, end: float) -> float:
        return sum(row[2] for row in read(api, times=(NOON + start * HOUR, NOON + end * HOUR)).values())

    assert [hours(0, 1), hours(-5, 0), hours(-5, 5.5), hours(2, 5), hours(6, 9)] == [2.0, 4.0, 9.0, 0.0, 0.0]
    assert hours(-5, 1) + hours(1, 9) == hours(-5, 9) == 10.0


def test_a_running_attempt_counts_until_now(api: Sessions, worker: Sessions, add_job: AddJob) -> None:
    add_job([(0, None)], num_gpus=1)
    with worker() as session:
        now = session.scalar(func.now().select())
    assert now is not None

    [(_, _, hours, *_)] = read(api, times=(NOON, now + 1000 * HOUR)).values()
    [(_, _, an_hour, *_)] = read(api, times=(NOON, NOON + HOUR)).values()

    elapsed = (now - NOON) / HOUR
    assert elapsed - 0.001 < hours < elapsed + 1
    assert an_hour == 1.0


def test_groups_are_tags_models_and_statuses(api: Sessions, add_job: AddJob) -> None:
    add_job([(0, 1)], num_gpus=1, metadata={"team": "cardiology"})
    add_job([(0, 1)], num_gpus=2, metadata={"team": "oncology", "a'b\"": "x"})
    add_job([(0, 1)], num_gpus=3, metadata={"project": "oncology"})

    by_team = {value: row[2] for value, row in read(api, usage.get_tag("team")).items()}

    assert by_team == {None: 3.0, "oncology": 2.0, "cardiology": 1.0}
    assert {value: row[2] for value, row in read(api, usage.get_tag("a'b\"")).items()} == {None: 4.0, "x": 2.0}
    assert {value: row[:3] for value, row in read(api, usage.MODEL).items()} == {"tiny": (3, 3, 6.0)}
    assert {value: row[:3] for value, row in read(api, usage.STATUS).items()} == {"queued": (3, 3, 6.0)}


def test_tokens_are_those_trained_on_within_the_time_also_twice(
    api: Sessions, worker: Sessions, add_job: AddJob
) -> None:
    job_id = add_job([(0, 1), (2, 3)], num_gpus=1)
    add_metrics(
        worker, job_id, (1, 0.1, 1, 100), (1, 0.5, 2, 200), (1, 0.9, 3, 300), (2, 2.1, 3, 310), (2, 2.9, 4, 420)
    )
    with worker.begin() as session:
        session.get_one(Attempt, (job_id, 2)).resumed_from_step = 2

    def tokens(start: float, end: float) -> float:
        return sum(row[4] for row in read(api, times=(NOON + start * HOUR, NOON + end * HOUR)).values())

    assert tokens(0, 4) == 300 + 220
    assert [tokens(0, 0.6), tokens(0.6, 2.5), tokens(2.5, 4)] == [200, 100 + 110, 110]
