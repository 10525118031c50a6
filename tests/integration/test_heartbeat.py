"""The thread that renews a lease does so for a worker that works, and not for one that hangs."""

import pytest
from sqlalchemy import func, select

from jobs import lifecycle
from jobs.database import Sessions, tenant_transaction
from jobs.errors import LeaseLost
from jobs.lifecycle import Retries
from jobs.models import Job
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.status import JobStatus, StopReason
from tests.factories import wait_until
from tests.integration.rows import add_dataset, claim, read, submit
from worker.heartbeat import HANGING, Heartbeat, read_clock

LEASE_SECONDS = 1.5
RETRIES = Retries(max_infra_restarts=2, max_no_progress_restarts=1, backoff_seconds=0)


@pytest.fixture
def short(settings: Settings) -> Settings:
    return settings.model_copy(update={"heartbeat_seconds": 0.1, "lease_seconds": LEASE_SECONDS})


def is_over(worker: Sessions, job_id: str) -> bool:
    """By the database's clock."""
    with worker() as session:
        return bool(session.scalar(select(Job.lease_expires_at < func.now()).where(Job.id == job_id)))


def work_for(heartbeat: Heartbeat, seconds: float) -> None:
    """As a main loop does that looks again and again."""
    end = read_clock() + seconds

    def look() -> bool:
        heartbeat.keep_alive()
        return read_clock() > end

    wait_until(look, seconds=seconds + 30)


def test_a_worker_whose_main_loop_hangs_loses_its_job_and_one_that_works_keeps_it(
    api: Sessions, worker: Sessions, identity: Identity, short: Settings
) -> None:
    """The heartbeat's thread lives on in both: without the difference a job that nobody works on stays taken."""
    job_id = submit(api, identity, short, add_dataset(api, identity)).id
    asked_at = read_clock()
    _, lease = claim(worker, seconds=LEASE_SECONDS)

    with Heartbeat(short, lease, asked_at) as heartbeat:
        work_for(heartbeat, 2 * LEASE_SECONDS)
        assert not is_over(worker, job_id)
        hung_at = read_clock()
        wait_until(lambda: is_over(worker, job_id), seconds=10 * LEASE_SECONDS)
        over_after = read_clock() - hung_at
        with worker.begin() as session:
            lifecycle.reap_lost_jobs(session, RETRIES)
        wait_until(lambda: heartbeat.is_lost)
        with pytest.raises(LeaseLost):
            heartbeat.keep_alive()

    assert over_after < (1 + HANGING) * LEASE_SECONDS + 2, "from the last renewal before it counts as hanging"
    assert read(worker, job_id).status == JobStatus.QUEUED


def test_a_main_loop_that_comes_back_in_time_keeps_its_job_and_hears_what_a_client_wished_meanwhile(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    short = settings.model_copy(update={"heartbeat_seconds": 0.1, "lease_seconds": 6.0})
    job_id = submit(api, identity, short, add_dataset(api, identity)).id
    asked_at = read_clock()
    _, lease = claim(worker, seconds=6)

    with Heartbeat(short, lease, asked_at) as heartbeat:
        # It looks at nothing for longer than a hanging one may: no renewal, but the thread still asks for wishes.
        wait_until(lambda: read_clock() > asked_at + 6 * HANGING + 0.3, seconds=30)
        expires = read(worker, job_id).lease_expires_at
        with tenant_transaction(api, identity.tenant_id) as session:
            lifecycle.request_cancel(session, job_id)
        wait_until(lambda: heartbeat.wish == StopReason.CANCELLED, seconds=3)
        assert read(worker, job_id).lease_expires_at == expires
        assert heartbeat.find_stop_reason() == StopReason.CANCELLED
        wait_until(lambda: read(worker, job_id).lease_expires_at != expires, seconds=3)

        assert not heartbeat.is_lost
