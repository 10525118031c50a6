"""What a waiting job waits for, in words."""

import datetime
from typing import Any

from sqlalchemy import Row

from api.pages import ReadModel
from jobs.status import JobStatus


class QueuePlace(ReadModel):
    position: int | None
    """1 for the next to start; null in lists."""
    reason: str
    """What the job waits for."""


def describe_place(job: Row[Any]) -> QueuePlace | None:
    """From a row of the job's view; None for a job that does not wait."""
    if job.status == JobStatus.VALIDATING:
        return QueuePlace(position=None, reason="waits for the check of its dataset")
    if job.status != JobStatus.QUEUED:
        return None
    return QueuePlace(position=job.queue_position, reason=_find_reason(job))


def _find_reason(job: Row[Any]) -> str:
    """The most specific that is known: lists and a just created job come without most of `repository.QUEUE_FACTS`."""
    if job.not_before > datetime.datetime.now(datetime.UTC):
        return f"waits until {job.not_before.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC to be tried again"
    obstacle = _find_missing_worker(job) or _find_limit(job) or _find_problem(job)
    if obstacle is not None:
        return obstacle
    num_before = (job.queue_position or 1) - 1
    if num_before:
        return f"{num_before} jobs come before it" if num_before > 1 else "1 job comes before it"
    return "waits for a free worker"


def _find_missing_worker(job: Row[Any]) -> str | None:
    if job.largest_worker is None:
        is_known = job.num_able_workers is not None
        return "no worker is running" if is_known else None
    if job.largest_worker < job.num_gpus:
        gpus = "1 GPU" if job.num_gpus == 1 else f"{job.num_gpus} GPUs"
        return f"no running worker has {gpus}; the largest has {job.largest_worker}"
    return None


def _find_limit(job: Row[Any]) -> str | None:
    if job.key_limit is None or job.key_running is None or job.key_running < job.key_limit:
        return None
    jobs = "1 job" if job.key_limit == 1 else f"{job.key_limit} jobs"
    return f"its key may run {jobs} at once, and runs {job.key_running}"


def _find_problem(job: Row[Any]) -> str | None:
    if job.num_able_workers == 0 and job.worker_problem:
        return f"no worker can take it now: {job.worker_problem}"
    return None
