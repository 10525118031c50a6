"""What a worker does. Functions that take a `Lease` raise LeaseLost, and change nothing, when the job has another
owner or a newer epoch: an old worker can never write over a new one. Only the database's clock is used.
"""

import datetime
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, func, select, text, update
from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import LeaseLost
from jobs.ids import new_id
from jobs.lifecycle.changes import (
    Ending,
    Lease,
    News,
    add_event,
    change_status,
    end_attempt,
    finish,
    insert_once,
    lock_owned,
)
from jobs.lifecycle.reviews import find_hold, hold_locked
from jobs.models import Adapter, Attempt, Checkpoint, Event, Job, JobRows, Json, LogChunk, Metric, SafetyRound
from jobs.status import FailureReason, Fault, JobStatus, StopReason

MAX_BACKOFF = 36
"""A job waits at most so many times the first back-off."""


@dataclass(frozen=True)
class Retries:
    """How often, and how soon, a job is tried again."""

    max_infra_restarts: int
    max_no_progress_restarts: int
    backoff_seconds: float
    """Before the first; each doubles it."""


def renew_lease(session: Session, lease: Lease) -> StopReason | None:
    """Returns why the run is to stop, if it is."""
    return _read_wish(session.connection().execute(_RENEW, _by(lease) | {"seconds": lease.seconds}).first(), lease)


def find_wish(session: Session, lease: Lease) -> StopReason | None:
    """Why the run is to stop, if it is; cheaper than to renew."""
    return _read_wish(session.connection().execute(_FIND_WISH, _by(lease)).first(), lease)


def store_news(session: Session, lease: Lease, news: News) -> None:
    connection = session.connection()
    job = connection.execute(_LOCK_OWNED, _by(lease)).first()
    if job is None:
        raise LeaseLost(lease.job_id)
    if news.progress is not None:
        if job.status == JobStatus.STARTING:
            change_status(session, lock_owned(session, lease), JobStatus.RUNNING, "training")
        connection.execute(_TELL_PROGRESS, {"job": job.id, "news": news.progress, "latest": news.latest_metrics})
    tables = ((Event, news.events), (Metric, news.metrics), (SafetyRound, news.safety_rounds))
    for table, rows in (*tables, (LogChunk, news.log_chunks)):
        insert_once(session, job, table, rows)
    if news.offsets is not None:
        offsets = {"log_offset": news.offsets[0], "events_offset": news.offsets[1]}
        step = {} if news.progress is None else {"last_step": news.progress["step"]}
        session.execute(_this_attempt(job).values(offsets | step))


def record_resume(session: Session, lease: Lease, step: int) -> None:
    """The attempt goes on after a stored checkpoint."""
    job = lock_owned(session, lease)
    session.execute(_this_attempt(job).values(resumed_from_step=step))
    add_event(session, job, "notice", f"goes on from the checkpoint at step {step}", {"code": "resuming", "step": step})


def store_checkpoint(session: Session, lease: Lease, checkpoint: Json) -> bool:
    """A checkpoint is in the store: step, store_key, num_bytes, sha256, metrics. False: one of that step was there."""
    job = lock_owned(session, lease)
    if repository.find_checkpoint(session, job.id, job.attempt, checkpoint["step"]) is not None:
        return False
    session.add(
        Checkpoint(id=new_id("ckpt"), tenant_id=job.tenant_id, job_id=job.id, attempt=job.attempt, **checkpoint)
    )
    step = {"step": checkpoint["step"], "bytes": checkpoint["num_bytes"]}
    add_event(session, job, "checkpoint", f"checkpoint at step {checkpoint['step']}", step)
    return True


def store_rows(session: Session, lease: Lease, report: Json) -> None:
    """How the attempt prepared the job's rows; what an earlier one told is replaced."""
    job = lock_owned(session, lease)
    session.merge(JobRows(job_id=job.id, tenant_id=job.tenant_id, attempt=job.attempt, report=report))


def remove_checkpoints(session: Session, lease: Lease, ids: list[str]) -> None:
    """Damaged or old ones, whose objects are about to be deleted."""
    lock_owned(session, lease)
    if ids:
        session.execute(_DELETE_CHECKPOINTS, [{"checkpoint_id": checkpoint_id} for checkpoint_id in ids])


def note(session: Session, lease: Lease, code: str, message: str, **details: Any) -> None:
    """Something that a person should know."""
    add_event(session, lock_owned(session, lease), "notice", message, {"code": code, **details})


def begin_stopping(session: Session, lease: Lease, reason: StopReason) -> None:
    """The trainer's processes are about to be ended. A pause stays one: it is where the job will be."""
    job = lock_owned(session, lease)
    if job.status == JobStatus.STOPPING or (job.status == JobStatus.PAUSING and reason != StopReason.CANCELLED):
        return
    change_status(session, job, JobStatus.STOPPING, f"stopping: {reason}", {"stop_reason": reason})


# --- How an attempt ends ----------------------------------------------------------------------------------------


def succeed(session: Session, lease: Lease, adapter: Adapter, verification: Json) -> None:
    """The adapter is in the store and was verified."""
    job = lock_owned(session, lease)
    if job.status == JobStatus.STARTING:  # A run too short to have been seen training.
        change_status(session, job, JobStatus.RUNNING, "trained")
    job.verification = verification
    if job.cancel_requested_at is None:
        session.add(adapter)
        session.flush()
    finish(session, job, JobStatus.SUCCEEDED, Ending(exit_code=0))


def fail(session: Session, lease: Lease, ending: Ending, verification: Json | None = None) -> None:
    job = lock_owned(session, lease)
    job.verification = verification
    finish(session, job, JobStatus.FAILED, ending)


def cancel(session: Session, lease: Lease, ending: Ending) -> None:
    """The wish is fulfilled: no process of the job lives."""
    finish(session, lock_owned(session, lease), JobStatus.CANCELLED, ending)


def give_back(session: Session, lease: Lease, ending: Ending, retries: Retries) -> None:
    """The attempt is over and the job is not: to be tried again, or paused, or given up."""
    give_back_locked(session, lock_owned(session, lease), ending, retries)


def give_back_locked(session: Session, job: Job, ending: Ending, retries: Retries) -> None:
    """The job's row is locked, and whoever calls may take the job from its owner."""
    assert ending.reason is not None
    assert ending.fault is not None
    if job.cancel_requested_at is not None:
        finish(session, job, JobStatus.CANCELLED, ending)
        return
    if (held := find_hold(session, job)) is not None:
        hold_locked(session, job, Ending(held.reason, ending.fault, ending.exit_code), held.step, held.findings)
        return
    _count_restart(session, job, ending.fault)
    exhausted = _find_exhausted(job, retries)
    if exhausted is not None and ending.fault != Fault.NONE:
        reason = {**ending.reason, "code": exhausted, "last_code": ending.reason["code"]}
        reason["message"] = f"{_EXHAUSTED_WORDS[exhausted]}; the last time: {ending.reason['message']}"
        finish(session, job, JobStatus.FAILED, Ending(reason, ending.fault, ending.exit_code))
        return
    to = JobStatus.PAUSED if job.status == JobStatus.PAUSING else JobStatus.QUEUED
    end_attempt(session, job, to, ending)
    job.reason = ending.reason
    job.queued_at = func.now()
    job.not_before = func.now() + _compute_backoff(job, ending.fault, retries)
    message = "paused" if to == JobStatus.PAUSED else f"queued again: {ending.reason['message']}"
    change_status(session, job, to, message, {"reason": ending.reason, "fault": ending.fault})


_EXHAUSTED_WORDS = {
    FailureReason.NO_PROGRESS: "the training hung or crashed again and again without a new checkpoint",
    FailureReason.TOO_MANY_RESTARTS: "the job was started again too often",
}


def _count_restart(session: Session, job: Job, fault: Fault) -> None:
    if repository.find_checkpoint_step(session, job.id, job.attempt) is not None:
        job.no_progress_restarts = 0
    if fault != Fault.NONE:
        job.infra_restarts += 1
    if fault == Fault.TRAINING:
        job.no_progress_restarts += 1


def _find_exhausted(job: Job, retries: Retries) -> FailureReason | None:
    if job.no_progress_restarts > retries.max_no_progress_restarts:
        return FailureReason.NO_PROGRESS
    return FailureReason.TOO_MANY_RESTARTS if job.infra_restarts > retries.max_infra_restarts else None


def _compute_backoff(job: Job, fault: Fault, retries: Retries) -> datetime.timedelta:
    if fault == Fault.NONE:
        return datetime.timedelta()
    factor = min(2 ** (job.infra_restarts - 1), MAX_BACKOFF)
    return datetime.timedelta(seconds=retries.backoff_seconds * factor)


def _this_attempt(job: Any) -> Any:
    return update(Attempt).where(Attempt.job_id == job.id, Attempt.number == job.attempt)


# --- Statements of every beat, built once -----------------------------------------------------------------------

_jobs = Job.__table__.c
_IS_OWNED = (
    _jobs.id == bindparam("job"),
    _jobs.lease_owner == bindparam("owner"),
    _jobs.lease_epoch == bindparam("epoch"),
)
_WISH = (
    _jobs.cancel_requested_at.is_not(None).label("is_cancelled"),
    _jobs.status,
    (_jobs.deadline_at < func.now()).label("is_late"),
)
_FIND_WISH = select(*_WISH).where(*_IS_OWNED)
_RENEW = (
    update(Job.__table__)  # type: ignore[arg-type]
    .where(*_IS_OWNED)
    .values(
        heartbeat_at=func.now(),
        lease_expires_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("seconds")),
    )
    .returning(*_WISH)
)
_LOCK_OWNED = select(_jobs.id, _jobs.tenant_id, _jobs.attempt, _jobs.status).where(*_IS_OWNED).with_for_update()
_TELL_PROGRESS = (
    update(Job.__table__)  # type: ignore[arg-type]
    .where(_jobs.id == bindparam("job"))
    .values(
        progress=bindparam("news", type_=_jobs.progress.type),
        progress_at=func.now(),
        metrics=func.coalesce(_jobs.metrics, text("'{}'::jsonb"), type_=_jobs.metrics.type).op("||")(
            bindparam("latest", type_=_jobs.metrics.type)
        ),
    )
)
_DELETE_CHECKPOINTS = Checkpoint.__table__.delete().where(Checkpoint.__table__.c.id == bindparam("checkpoint_id"))  # type: ignore[attr-defined]


def _by(lease: Lease) -> Json:
    return {"job": lease.job_id, "owner": lease.owner, "epoch": lease.epoch}


def _read_wish(row: Row[Any] | None, lease: Lease) -> StopReason | None:
    if row is None:
        raise LeaseLost(lease.job_id)
    if row.is_cancelled:
        return StopReason.CANCELLED
    if row.status == JobStatus.PAUSING:
        return StopReason.PAUSED
    return StopReason.TIME_LIMIT if row.is_late else None
