"""What the reconciler does for jobs whose workers are gone."""

import logging
from collections.abc import Sequence

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs import repository
from jobs.lifecycle.attempts import Retries, give_back_locked
from jobs.lifecycle.changes import Ending
from jobs.models import Job
from jobs.status import FailureReason, Fault

logger = logging.getLogger(__name__)


def reap_lost_jobs(session: Session, retries: Retries) -> Sequence[Job]:
    """Take jobs from workers whose leases ran out. Without an owner, whatever such a worker writes changes nothing.

    One whose row the database refuses to change stays as it is, and holds up no other.
    """
    reaped = []
    for job in repository.lock_jobs_with_expired_leases(session):
        job_id = job.id
        try:
            with session.begin_nested():
                give_back_locked(session, job, describe_lost_worker(job), retries)
        except IntegrityError:
            logger.exception("%s: cannot be taken from its lost worker", job_id)
        else:
            reaped.append(job)
    return reaped


def describe_lost_worker(job: Job) -> Ending:
    reason = {"code": FailureReason.WORKER_LOST, "message": f"worker {job.lease_owner} is gone"}
    return Ending(reason, Fault.INFRASTRUCTURE)
