"""What keeps an outage of the database from looking like the death of all workers, and a worker that stands still from
holding rows."""

import time

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from jobs.database import LOST_DATABASE, Role, Sessions, build_engine, build_sessions
from jobs.models import Job
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.status import JobStatus
from tests.factories import wait_until
from tests.integration.rows import add_dataset, claim, read, submit
from worker.reconciler import ReapBrake, reap

LEASE_SECONDS = 0.4


def claim_jobs(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, seconds: list[float]
) -> list[str]:
    """As many as there are leases of so many seconds; their ids."""
    dataset_id = add_dataset(api, identity)
    ids = [submit(api, identity, settings, dataset_id).id for _ in seconds]
    return [claim(worker, seconds=lease)[0].id for lease, _ in zip(seconds, ids, strict=True)]


def release(brake: ReapBrake, worker: Sessions) -> None:
    wait_until(lambda: not brake.is_on(worker), seconds=10)


def test_nothing_is_reaped_until_the_reconciler_has_been_up_for_a_lease(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    """Every living worker has had the chance to renew by then."""
    job_id = claim_jobs(api, worker, identity, settings, [0])[0]
    begun, brake = time.monotonic(), ReapBrake(LEASE_SECONDS)

    reap(worker, settings, brake)
    assert read(worker, job_id).status == JobStatus.STARTING
    release(brake, worker)
    assert time.monotonic() - begun >= LEASE_SECONDS
    reap(worker, settings, brake)

    assert read(worker, job_id).status == JobStatus.QUEUED


def test_when_most_leases_end_at_once_they_get_one_lease_more(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the database, or the network, and not three machines in the same moment. Only once: they may be dead."""
    brake = ReapBrake(LEASE_SECONDS)
    release(brake, worker)
    ids = claim_jobs(api, worker, identity, settings, [0, 0, 0, 60])

    begun = time.monotonic()
    reap(worker, settings, brake)
    assert [read(worker, job_id).status for job_id in ids] == [JobStatus.STARTING] * 4
    assert "3 of 4 leases are over at once" in caplog.text
    release(brake, worker)
    assert time.monotonic() - begun >= LEASE_SECONDS
    reap(worker, settings, brake)

    assert [read(worker, job_id).status for job_id in ids] == [JobStatus.QUEUED] * 3 + [JobStatus.STARTING]


def test_a_few_lost_workers_of_many_are_no_outage(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    brake = ReapBrake(LEASE_SECONDS)
    release(brake, worker)
    ids = claim_jobs(api, worker, identity, settings, [0, 0, 60, 60])

    reap(worker, settings, brake)

    assert [read(worker, job_id).status for job_id in ids] == [JobStatus.QUEUED] * 2 + [JobStatus.STARTING] * 2


def test_after_an_outage_every_worker_has_a_leases_time_to_renew(worker: Sessions) -> None:
    brake = ReapBrake(LEASE_SECONDS)
    release(brake, worker)

    brake.note_database(is_there=False)
    brake.note_database(is_there=True)
    assert not brake.is_on(worker), "a hiccup cost nobody a lease"
    brake.note_database(is_there=False)
    back_at = time.monotonic() + LEASE_SECONDS / 2
    wait_until(lambda: time.monotonic() > back_at, seconds=5)
    brake.note_database(is_there=True)

    assert brake.is_on(worker)
    release(brake, worker)


def test_a_worker_that_stands_still_in_a_transaction_lets_go_of_its_rows(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    """Before its lease ends: others may take its job then, and would wait for its locks."""
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    lock = select(Job.id).where(Job.id == job_id).with_for_update(nowait=True)
    short = settings.model_copy(update={"lease_seconds": 2.0})
    engine = build_engine(short, Role.WORKER)

    def is_free() -> bool:
        try:
            with worker.begin() as session:
                return session.scalar(lock) is not None
        except OperationalError:
            return False

    with build_sessions(engine)() as frozen:
        frozen.execute(lock)
        assert not is_free()
        wait_until(is_free, seconds=10)
        with pytest.raises(LOST_DATABASE):
            frozen.execute(lock)
    engine.dispose()
