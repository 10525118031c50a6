"""The steps that every change is made of. The caller holds the row's lock; an event follows in the same transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import LeaseLost
from jobs.ids import new_id
from jobs.lifecycle.deliveries import tell_webhooks
from jobs.models import Attempt, Base, Event, Job, Json, LogChunk, Metric, Review, SafetyRound
from jobs.status import TRANSITIONS, Fault, JobStatus, ReviewState


@dataclass(frozen=True)
class Lease:
    """A worker's right to write about a job."""

    job_id: str
    owner: str
    epoch: int
    seconds: float


@dataclass(frozen=True)
class Ending:
    """How an attempt ended."""

    reason: Json | None = None
    """Code, message, remedy, and what else is known; None for a success."""
    fault: Fault | None = None
    exit_code: int | None = None


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
    safety_rounds: list[Json] = field(default_factory=list)
    """step, is_last, ok, message, summary, num_findings, findings, open_findings, escalation"""
    log_chunks: list[Json] = field(default_factory=list)
    """seq, num_lines, text"""
    offsets: tuple[int, int] | None = None
    """Bytes of train.log and of events.jsonl up to which this is; None while nothing was read."""


def lock_owned(session: Session, lease: Lease) -> Job:
    """Raises LeaseLost when the job has another owner or a newer epoch, or none."""
    job = repository.lock_job(session, lease.job_id)
    if job.lease_owner != lease.owner or job.lease_epoch != lease.epoch:
        raise LeaseLost(lease.job_id)
    return job


def finish(session: Session, job: Job, status: JobStatus, ending: Ending) -> None:
    """A client's wish to cancel wins over whatever else would have come of the job."""
    if job.cancel_requested_at is not None:
        reason = {"code": "cancelled", "message": "cancelled"}
        status, ending = JobStatus.CANCELLED, Ending(reason, exit_code=ending.exit_code)
    end_attempt(session, job, status, ending)
    if job.status == JobStatus.HELD:
        _withdraw_review(session, job)
    job.reason = ending.reason
    job.finished_at = func.now()
    message = ending.reason["message"] if ending.reason else status.value
    change_status(session, job, status, message, {"reason": ending.reason})


def end_attempt(session: Session, job: Job, outcome: JobStatus, ending: Ending) -> None:
    """Let go of the lease, if the job has one."""
    if job.lease_owner is None:
        return
    job.lease_owner = job.lease_expires_at = job.heartbeat_at = job.deadline_at = None
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job.id, Attempt.number == job.attempt)
        .values(
            ended_at=func.now(),
            outcome=outcome.value,
            reason=ending.reason,
            fault=ending.fault,
            exit_code=ending.exit_code,
        )
    )


def _withdraw_review(session: Session, job: Job) -> None:
    """Nobody needs to decide about a job that was cancelled."""
    session.flush()
    is_open = (Review.job_id == job.id, Review.closed_at.is_(None))
    withdraw = update(Review).where(*is_open).values(state=ReviewState.WITHDRAWN, closed_at=func.now())
    # Only what the table says counts: an object of this session may have been closed just now.
    session.execute(withdraw.execution_options(synchronize_session=False))


def change_status(session: Session, job: Job, to: JobStatus, message: str, data: Json | None = None) -> None:
    assert to in TRANSITIONS[job.status], f"{job.id}: {job.status} -> {to}"
    data = {"from": job.status, "to": to, **(data or {})}
    job.status = to
    tell_webhooks(session, job, add_event(session, job, "status", message, data), to)


def add_event(session: Session, job: Job, type_: str, message: str, data: Json) -> str:
    """Its id."""
    session.flush()
    event_id = new_id("evt")
    insert_once(session, job, Event, [{"id": event_id, "type": type_, "message": message, "data": data}])
    return event_id


def insert_once(session: Session, job: Any, table: type[Base], rows: Sequence[Json]) -> None:
    """Rows about a job; those that are there already stay as they are."""
    if rows:
        owner = {"job_id": job.id, "tenant_id": job.tenant_id, "attempt": job.attempt}
        session.connection().execute(_INSERT_ONCE[table], [owner | row for row in rows])


# Tables and not classes: many times a second, the ORM's bookkeeping would cost more than the rows.
_INSERT_ONCE: dict[type[Base], Insert] = {
    table: insert(table.__table__).on_conflict_do_nothing()  # type: ignore[arg-type]
    for table in (Event, Metric, SafetyRound, LogChunk)
}
