"""What the reconciler does for jobs whose workers are gone."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from jobs import repository
from jobs.lifecycle.attempts import Retries, give_back_locked
from jobs.lifecycle.changes import Ending
from jobs.models import Job
from jobs.status import FailureReason, Fault


def reap_lost_jobs(session: Session, retries: Retries) -> Sequence[Job]:
    """Take jobs from workers whose leases ran out. Without an owner, whatever such a worker writes changes nothing."""
    jobs = repository.lock_jobs_with_expired_leases(session)
    for job in jobs:
        give_back_locked(session, job, describe_lost_worker(job), retries)
    return jobs


def describe_lost_worker(job: Job) -> Ending:
    reason = {"code": FailureReason.WORKER_LOST, "message": f"worker {job.lease_owner} is gone"}
    return Ending(reason, Fault.INFRASTRUCTURE)
