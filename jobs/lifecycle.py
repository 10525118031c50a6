"""Every status change: the row is locked, the change is checked, and an event follows in the same transaction.

Functions that take a `Lease` are a worker's. They raise LeaseLost, and change nothing, when the job has another
owner or a newer epoch: an old worker can never write over a new one. Only the database's clock is used.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Integer, Row, Select, bindparam, func, literal, null, select, update
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import Conflict, LeaseLost
from jobs.ids import new_id
from jobs.models import Adapter, Attempt, Base, Checkpoint, Dataset, Event, Job, Json, LogChunk, Metric
from jobs.status import FINAL, TRANSITIONS, DatasetStatus, FailureReason, JobStatus

CHECK_BYTES_PER_SECOND = 2e6
"""A check is surely faster than this."""


@dataclass(frozen=True)
class Lease:
    """A worker's right to write about a job."""

    job_id: str
    owner: str
    epoch: int
    seconds: float


@dataclass
class News:
    """What a worker learned about its job since the last time: rows by column name, without the job's own columns.

    Their keys (`id`, `seq`) are the worker's, so that sending the same news twice stores it once.
    """

    progress: Json | None = None
    """The job's progress as clients see it."""
    latest_metrics: Json = field(default_factory=dict)
    events: list[Json] = field(default_factory=list)
    """id, type, message, data"""
    metrics: list[Json] = field(default_factory=list)
    """seq, step, epoch, tokens, values"""
    log_chunks: list[Json] = field(default_factory=list)
    """seq, num_lines, text"""
    checkpoints: list[Json] = field(default_factory=list)
    """id, step, path, num_bytes, metrics"""


# --- What a client causes ---------------------------------------------------------------------------------------


def create_job(session: Session, values: Json, *, is_dataset_checked: bool, largest_worker: int | None) -> Row[Any]:
    """Store a new job by its columns, with its first event. Returns its view, without its place in the queue."""
    status = JobStatus.QUEUED if is_dataset_checked else JobStatus.VALIDATING
    event = {"event_id": new_id("evt"), "message": f"job created, {status}", "data": {"to": status}}
    parameters = {**values, **event, "status": status, "largest_worker": largest_worker}
    return session.connection().execute(_CREATE_JOB, parameters).one()


def request_cancel(session: Session, job_id: str) -> Job:
    """Cancel at once what no worker owns; else leave the wish for its worker. Twice is once."""
    job = repository.lock_job(session, job_id)
    if job.status in FINAL:
        raise Conflict("job_is_final", f"the job is {job.status} already", status=job.status)
    if job.cancel_requested_at is not None:
        return job
    job.cancel_requested_at = func.now()
    if job.lease_owner is None:
        _finish(session, job, JobStatus.CANCELLED, None)
    else:
        _add_event(session, job, "cancel_requested", "cancel requested", {})
    return job


# --- What the check of a dataset causes -------------------------------------------------------------------------


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
        _go_on_after_dataset(session, job)


def _go_on_after_dataset(session: Session, job: Job) -> None:
    statuses = repository.list_dataset_statuses(session, job)
    if DatasetStatus.REJECTED in statuses:
        reason = {
            "code": FailureReason.DATASET_REJECTED,
            "message": "the dataset did not pass its check",
            "remedy": "read GET /datasets/{id}/report, mend the rows that it names and upload the file again",
        }
        _finish(session, job, JobStatus.FAILED, reason)
    elif DatasetStatus.VALIDATING not in statuses:
        _change_status(session, job, JobStatus.QUEUED, "the dataset passed its check")


# --- What a worker does -----------------------------------------------------------------------------------------


def claim_job(session: Session, owner: str, seconds: float, num_gpus: int) -> tuple[Job, Lease] | None:
    """The best queued job that fits on `num_gpus`; whoever asked, and however often, each job has one owner."""
    job = repository.lock_best_queued_job(session, num_gpus)
    if job is None:
        return None
    job.attempt += 1
    job.lease_epoch += 1
    job.lease_owner, job.heartbeat_at = owner, func.now()
    job.lease_expires_at = func.now() + datetime.timedelta(seconds=seconds)
    job.started_at = func.coalesce(Job.started_at, func.now())
    job.reason = None
    _change_status(session, job, JobStatus.STARTING, f"attempt {job.attempt} starts", {"worker": owner})
    session.add(
        Attempt(
            job_id=job.id,
            number=job.attempt,
            tenant_id=job.tenant_id,
            lease_epoch=job.lease_epoch,
            worker_id=owner,
        )
    )
    session.flush()
    return job, Lease(job.id, owner, job.lease_epoch, seconds)


def store_news(session: Session, lease: Lease, news: News) -> bool:
    """Renew the lease and store the news. Returns whether a client wants the job cancelled."""
    job = _lock_owned(session, lease)
    job.heartbeat_at = func.now()
    job.lease_expires_at = func.now() + datetime.timedelta(seconds=lease.seconds)
    if news.progress is not None:
        job.progress, job.progress_at = news.progress, func.now()
        job.metrics = {**(job.metrics or {}), **news.latest_metrics}
        if job.status == JobStatus.STARTING:
            _change_status(session, job, JobStatus.RUNNING, "training")
    for table, rows in (
        (Event, news.events),
        (Metric, news.metrics),
        (LogChunk, news.log_chunks),
        (Checkpoint, news.checkpoints),
    ):
        _insert_once(session, job, table, rows)
    session.flush()
    return job.cancel_requested_at is not None


def begin_stopping(session: Session, lease: Lease, reason: str) -> None:
    """The trainer's processes are about to be ended."""
    job = _lock_owned(session, lease)
    if job.status != JobStatus.STOPPING:
        _change_status(session, job, JobStatus.STOPPING, f"stopping: {reason}", {"stop_reason": reason})


def succeed(session: Session, lease: Lease, adapter: Adapter, verification: Json) -> None:
    """The adapter is in the store and was verified."""
    job = _lock_owned(session, lease)
    if job.status == JobStatus.STARTING:  # A run too short to have been seen training.
        _change_status(session, job, JobStatus.RUNNING, "trained")
    job.verification = verification
    if job.cancel_requested_at is None:
        session.add(adapter)
        session.flush()
    _finish(session, job, JobStatus.SUCCEEDED, None, exit_code=0)


def fail(
    session: Session, lease: Lease, reason: Json, *, exit_code: int | None = None, verification: Json | None = None
) -> None:
    job = _lock_owned(session, lease)
    job.verification = verification
    _finish(session, job, JobStatus.FAILED, reason, exit_code=exit_code)


def cancel(session: Session, lease: Lease, *, exit_code: int | None = None) -> None:
    """The wish is fulfilled: no process of the job lives."""
    _finish(session, _lock_owned(session, lease), JobStatus.CANCELLED, None, exit_code=exit_code)


def requeue(session: Session, lease: Lease, reason: Json, *, exit_code: int | None = None) -> None:
    """Give the job back unfinished, at no fault of its own."""
    _requeue(session, _lock_owned(session, lease), reason, exit_code=exit_code)


# --- What the reconciler does -----------------------------------------------------------------------------------


def reap_lost_jobs(session: Session, max_attempts: int) -> Sequence[Job]:
    """Take jobs from workers whose leases ran out. The epoch rises, so that such a worker writes nothing any more."""
    jobs = repository.lock_jobs_with_expired_leases(session)
    for job in jobs:
        job.lost_attempts += 1
        job.lease_epoch += 1
        reason = {"code": FailureReason.WORKER_LOST, "message": f"worker {job.lease_owner} stopped renewing its lease"}
        if job.lost_attempts >= max_attempts:
            _finish(session, job, JobStatus.FAILED, reason)
        else:
            _requeue(session, job, reason)
    return jobs


# --- Steps of the above -----------------------------------------------------------------------------------------


def _lock_owned(session: Session, lease: Lease) -> Job:
    job = repository.lock_job(session, lease.job_id)
    if job.lease_owner != lease.owner or job.lease_epoch != lease.epoch:
        raise LeaseLost(lease.job_id)
    return job


def _finish(
    session: Session, job: Job, status: JobStatus, reason: Json | None, *, exit_code: int | None = None
) -> None:
    """A client's wish to cancel wins over whatever else would have come of the job."""
    if job.cancel_requested_at is not None:
        status, reason = JobStatus.CANCELLED, {"code": "cancelled", "message": "cancelled"}
    _end_attempt(session, job, status, reason, exit_code)
    job.reason = reason
    job.finished_at = func.now()
    _change_status(session, job, status, reason["message"] if reason else status.value, {"reason": reason})


def _requeue(session: Session, job: Job, reason: Json, *, exit_code: int | None = None) -> None:
    if job.cancel_requested_at is not None:
        _finish(session, job, JobStatus.CANCELLED, None, exit_code=exit_code)
        return
    _end_attempt(session, job, JobStatus.QUEUED, reason, exit_code)
    job.reason = reason
    job.progress = job.metrics = None
    _change_status(session, job, JobStatus.QUEUED, f"queued again: {reason['message']}", {"reason": reason})


def _end_attempt(session: Session, job: Job, outcome: JobStatus, reason: Json | None, exit_code: int | None) -> None:
    if job.lease_owner is None:
        return
    job.lease_owner = job.lease_expires_at = job.heartbeat_at = None
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job.id, Attempt.number == job.attempt)
        .values(ended_at=func.now(), outcome=outcome.value, reason=reason, exit_code=exit_code)
    )


def _change_status(session: Session, job: Job, to: JobStatus, message: str, data: Json | None = None) -> None:
    """`job` is locked by this transaction."""
    assert to in TRANSITIONS[job.status], f"{job.id}: {job.status} -> {to}"
    data = {"from": job.status, "to": to, **(data or {})}
    job.status = to
    _add_event(session, job, "status", message, data)


def _add_event(session: Session, job: Job, type_: str, message: str, data: Json) -> None:
    session.flush()
    row = {"id": new_id("evt"), "type": type_, "message": message, "data": data}
    _insert_once(session, job, Event, [row])


def _insert_once(session: Session, job: Job, table: type[Base], rows: list[Json]) -> None:
    if rows:
        owner = {"job_id": job.id, "tenant_id": job.tenant_id, "attempt": job.attempt}
        session.connection().execute(_INSERT_ONCE[table], [owner | row for row in rows])


# --- Statements, built once -------------------------------------------------------------------------------------

_NEW_JOB = (
    *("id", "tenant_id", "status", "name", "model", "dataset_id", "validation_dataset_id", "spec", "priority"),
    *("num_gpus", "metadata", "idempotency_key", "request_hash", "created_by"),
)


def _build_create_job() -> Select[Any]:
    """The job's row and its first event's by one statement, which returns the view as repository.get_job_view does."""
    jobs, events = Job.__table__.c, Event.__table__.c
    job = (
        insert(Job.__table__)  # type: ignore[arg-type]
        .values({name: bindparam(name, type_=jobs[name].type) for name in _NEW_JOB})
        .returning(jobs.tenant_id, *repository.JOB_VIEW_COLUMNS)
        .cte("job")
    )
    event = {
        "id": bindparam("event_id", type_=events.id.type),
        "tenant_id": job.c.tenant_id,
        "job_id": job.c.id,
        "attempt": job.c.attempt,
        "type": literal("status"),
        "message": bindparam("message", type_=events.message.type),
        "data": bindparam("data", type_=events.data.type),
    }
    created = insert(Event.__table__).from_select(list(event), select(*event.values())).cte("created")  # type: ignore[arg-type]
    return select(
        job,
        null().label("adapter_state"),
        null().label("queue_position"),
        bindparam("largest_worker", type_=Integer).label("largest_worker"),
    ).add_cte(created)


_CREATE_JOB = _build_create_job()

# Tables and not classes: many times a second, the ORM's bookkeeping would cost more than the rows.
_INSERT_ONCE: dict[type[Base], Insert] = {
    table: insert(table.__table__).on_conflict_do_nothing()  # type: ignore[arg-type]
    for table in (Event, Metric, LogChunk, Checkpoint)
}
