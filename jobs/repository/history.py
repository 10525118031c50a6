"""What happened to a job, by cursor."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.models import Attempt, Checkpoint, Event, LogChunk, Metric
from jobs.repository.jobs import get_job


def list_events(session: Session, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
    return _list_after(session, Event, job_id, after, limit)


def list_metrics(session: Session, job_id: str, *, after: int, limit: int) -> Sequence[Metric]:
    return _list_after(session, Metric, job_id, after, limit)


def list_log_chunks(session: Session, job_id: str, *, after: int, limit: int) -> Sequence[LogChunk]:
    return _list_after(session, LogChunk, job_id, after, limit)


def get_last_seqs(session: Session, job_id: str) -> tuple[int, int]:
    """The job's highest sequence numbers: of its metrics and of its log chunks."""
    last = [session.scalar(select(func.max(t.seq)).where(t.job_id == job_id)) or 0 for t in (Metric, LogChunk)]
    return last[0], last[1]


def get_attempt(session: Session, job_id: str, number: int) -> Attempt:
    return session.get_one(Attempt, (job_id, number))


def list_attempts(session: Session, job_id: str) -> Sequence[Attempt]:
    """The newest first."""
    return session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number.desc())).all()


def list_checkpoints(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """The newest first."""
    rows = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return session.scalars(rows.order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())).all()


def find_checkpoint(session: Session, job_id: str, attempt: int, step: int) -> Checkpoint | None:
    same = (Checkpoint.job_id == job_id, Checkpoint.attempt == attempt, Checkpoint.step == step)
    return session.scalar(select(Checkpoint).where(*same))


def find_checkpoint_step(session: Session, job_id: str, attempt: int) -> int | None:
    """The step of the newest checkpoint that an attempt stored."""
    steps = select(func.max(Checkpoint.step)).where(Checkpoint.job_id == job_id, Checkpoint.attempt == attempt)
    return session.scalar(steps)


def _list_after(session: Session, table: Any, job_id: str, after: int, limit: int) -> Sequence[Any]:
    """Raises NotFound for a job that is not there; one that is may have none."""
    query = select(table).where(table.job_id == job_id, table.seq > after).order_by(table.seq).limit(limit)
    rows = session.scalars(query).all()
    if not rows:
        get_job(session, job_id)
    return rows
