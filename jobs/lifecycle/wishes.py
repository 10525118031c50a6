"""What a client causes: a new job, and the wishes to cancel, pause and resume one."""

from typing import Any

from sqlalchemy import Integer, Row, Select, bindparam, func, literal, null, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import Conflict, LimitReached
from jobs.ids import new_id
from jobs.lifecycle.changes import Ending, add_event, change_status, finish
from jobs.lifecycle.checks import go_on_after_check
from jobs.models import Event, Job, Json
from jobs.statements import Statement
from jobs.status import FINAL, JobStatus


def create_job(session: Session, values: Json, *, is_dataset_checked: bool, largest_worker: int | None) -> Row[Any]:
    """Store a new job by its columns, with its first event. Returns its view, without its place in the queue."""
    status = JobStatus.QUEUED if is_dataset_checked else JobStatus.VALIDATING
    event = {"event_id": new_id("evt"), "message": f"job created, {status}", "data": {"to": status}}
    parameters = {**values, **event, "status": status, "largest_worker": largest_worker}
    return CREATE_JOB.one(session, **parameters)


def request_cancel(session: Session, job_id: str) -> Job:
    """Cancel at once what no worker owns; else leave the wish for its worker. Twice is once. Raises Conflict."""
    job = _lock_living(session, job_id)
    if job.cancel_requested_at is not None:
        return job
    job.cancel_requested_at = func.now()
    if job.lease_owner is None:
        finish(session, job, JobStatus.CANCELLED, Ending())
    else:
        add_event(session, job, "cancel_requested", "cancel requested", {})
    return job


def request_pause(session: Session, job_id: str) -> Job:
    """Pause at once what no worker owns; else its worker saves and ends the run. Twice is once. Raises Conflict."""
    job = _lock_living(session, job_id)
    if job.status in (JobStatus.PAUSED, JobStatus.PAUSING):
        return job
    if job.cancel_requested_at is not None or job.status == JobStatus.STOPPING:
        raise Conflict("job_is_stopping", "the job is being stopped; pause it when it is queued or running again")
    if job.status == JobStatus.HELD:
        raise _refuse_held(job)
    to = JobStatus.PAUSED if job.lease_owner is None else JobStatus.PAUSING
    change_status(session, job, to, "paused by request" if to == JobStatus.PAUSED else "pause requested")
    return job


def resume(session: Session, job_id: str) -> Job:
    """Let a paused job wait for a worker again. Raises Conflict, LimitReached."""
    # In this order, as the end of a check does: else that could miss the job, and the job that end.
    repository.lock_datasets_of_job(session, repository.get_job(session, job_id))
    job = _lock_living(session, job_id)
    if job.status == JobStatus.PAUSING:
        raise Conflict("job_is_pausing", "the job is still being paused; resume it when its status is paused")
    if job.status == JobStatus.HELD:
        raise _refuse_held(job)
    if job.status != JobStatus.PAUSED:
        raise Conflict("job_is_not_paused", f"the job is {job.status}; only a paused job can be resumed")
    check_queue_limit(session, job.created_by, repository.find_queue_limit(session, job.created_by))
    job.not_before = func.now()
    go_on_after_check(session, job, "resumed by request")
    return job


def _refuse_held(job: Job) -> Conflict:
    review = (job.reason or {}).get("review")
    remedy = "it goes on when two persons approve the review, and fails when one rejects it"
    return Conflict("job_is_held", f"the job is held: {review} waits for a decision", review=review, remedy=remedy)


def check_queue_limit(session: Session, key_id: str, limit: int | None) -> None:
    """One more job of the key may wait. Raises LimitReached."""
    if limit is not None and repository.count_waiting_jobs_of_key(session, key_id) >= limit:
        message = f"{limit} jobs of this key wait already, which is its limit"
        raise LimitReached("queue_limit_reached", message, remedy="try again when some of them have started")


def _lock_living(session: Session, job_id: str) -> Job:
    job = repository.lock_job(session, job_id)
    session.refresh(job)
    if job.status in FINAL:
        remedy = "a final status never changes; POST /jobs/{id}/retry makes a new job of it"
        raise Conflict("job_is_final", f"the job is {job.status} already", status=job.status, remedy=remedy)
    return job


# --- Statements, built once -------------------------------------------------------------------------------------

_NEW_JOB = (
    *("id", "tenant_id", "status", "name", "model", "dataset_id", "validation_dataset_id", "spec", "priority"),
    *("num_gpus", "metadata", "idempotency_key", "parent_id", "created_by"),
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
    unknown = {"adapter_state", *repository.QUEUE_FACTS} - {"largest_worker"}
    return select(
        job,
        *(null().label(name) for name in sorted(unknown)),
        bindparam("largest_worker", type_=Integer).label("largest_worker"),
    ).add_cte(created)


CREATE_JOB = Statement(_build_create_job())
