"""What happened to a job, by cursor."""

import datetime
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from jobs.models import Attempt, Checkpoint, Event, JobRows, LogChunk, Metric
from jobs.repository.jobs import get_job


def list_events(session: Session, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
    return _list_after(session, Event, job_id, after, limit)


def list_metrics(session: Session, job_id: str, *, after: int, limit: int) -> Sequence[Metric]:
    return _list_after(session, Metric, job_id, after, limit)


def find_rows(session: Session, job_id: str) -> JobRows | None:
    """None: they are not prepared yet."""
    return session.get(JobRows, job_id)


def find_event(session: Session, job_id: str, event_id: str) -> Event | None:
    return session.scalar(select(Event).where(Event.job_id == job_id, Event.id == event_id))


def find_metric(session: Session, job_id: str, seq: int) -> Metric | None:
    return session.get(Metric, (job_id, seq))


def list_newest_events(
    session: Session, job_id: str, *, limit: int, before: Event | datetime.datetime | None = None
) -> Sequence[Event]:
    """By time and not by `seq` alone, so that they can be merged with metrics."""
    query = select(Event).where(Event.job_id == job_id)
    if isinstance(before, Event):
        query = query.where(tuple_(Event.created_at, Event.seq) < (before.created_at, before.seq))
    elif before is not None:
        query = query.where(Event.created_at < before)
    return session.scalars(query.order_by(Event.created_at.desc(), Event.seq.desc()).limit(limit)).all()


def list_newest_metrics(
    session: Session, job_id: str, *, limit: int, before: int | None = None, until: datetime.datetime | None = None
) -> Sequence[Metric]:
    """Of a number below `before`; stored at `until` at the latest."""
    query = select(Metric).where(Metric.job_id == job_id)
    if before is not None:
        query = query.where(Metric.seq < before)
    if until is not None:
        query = query.where(Metric.created_at <= until)
    return session.scalars(query.order_by(Metric.seq.desc()).limit(limit)).all()


def sample_metrics(session: Session, job_id: str, count: int) -> Sequence[Metric]:
    """At most so many (two or more), evenly over the run, the first and the last among them."""
    last, _ = get_last_seqs(session, job_id)
    seqs = {1 + index * (last - 1) // (count - 1) for index in range(count)}
    return session.scalars(
        select(Metric).where(Metric.job_id == job_id, Metric.seq.in_(seqs)).order_by(Metric.seq)
    ).all()


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
