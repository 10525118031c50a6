"""What the check of a dataset causes."""

import datetime

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import LeaseLost
from jobs.lifecycle.changes import Ending, change_status, finish
from jobs.models import Dataset, Job, Json
from jobs.status import DatasetStatus, FailureReason, Fault, JobStatus

CHECK_BYTES_PER_SECOND = 2e6
"""A check is surely faster than this."""


def claim_dataset(session: Session, owner: str, seconds: float) -> Dataset | None:
    """The oldest dataset that waits for its check and that no living worker checks already.

    The lease is not renewed, so it is long enough for the dataset's size.
    """
    dataset = repository.lock_waiting_dataset(session)
    if dataset is not None:
        dataset.lease_owner = owner
        seconds += dataset.num_bytes / CHECK_BYTES_PER_SECOND
        dataset.lease_expires_at = func.now() + datetime.timedelta(seconds=seconds)
        session.flush()
    return dataset


def finish_dataset(session: Session, dataset_id: str, owner: str, report: Json) -> None:
    """Record the check's result; jobs that waited for it go on, or fail."""
    dataset = repository.lock_dataset(session, dataset_id)
    if dataset is None or dataset.lease_owner != owner or dataset.status != DatasetStatus.VALIDATING:
        raise LeaseLost(dataset_id)
    dataset.status = DatasetStatus.READY if report["ok"] else DatasetStatus.REJECTED
    dataset.num_rows, dataset.report = report["rows"], report
    dataset.validated_at = func.now()
    dataset.lease_owner = dataset.lease_expires_at = None
    session.flush()
    for job in repository.lock_jobs_waiting_for_dataset(session, dataset_id):
        go_on_after_check(session, job, "the dataset passed its check")


def release_datasets(session: Session, owner: str) -> None:
    """Their checks begin again at once: the owner's process is gone."""
    held = update(Dataset).where(Dataset.lease_owner == owner, Dataset.status == DatasetStatus.VALIDATING)
    session.execute(held.values(lease_owner=None, lease_expires_at=None))


def go_on_after_check(session: Session, job: Job, message: str) -> None:
    """A job that waited goes where its datasets' checks let it."""
    statuses = repository.list_dataset_statuses(session, job)
    if DatasetStatus.REJECTED in statuses:
        reason = {
            "code": FailureReason.DATASET_REJECTED,
            "message": "the dataset did not pass its check",
            "remedy": "read GET /datasets/{id}/report, mend the rows that it names and upload the file again",
        }
        finish(session, job, JobStatus.FAILED, Ending(reason, Fault.USER))
    elif DatasetStatus.VALIDATING not in statuses:
        job.queued_at = func.now()
        change_status(session, job, JobStatus.QUEUED, message)
    elif job.status != JobStatus.VALIDATING:
        change_status(session, job, JobStatus.VALIDATING, message)
