"""What happened to a job, as clients read it. Each `read_*` builds one from a row."""

import datetime
from typing import Any, Literal

from api.pages import ReadModel
from jobs.models import Attempt, Checkpoint, Event, LogChunk, Metric
from jobs.status import Fault, JobStatus
from trainer_core.data.row_report import RowReport


class EventRead(ReadModel):
    object: Literal["event"] = "event"
    id: str
    seq: int
    attempt: int
    type: str
    """status, phase, checkpoint, notice, error, cancel_requested"""
    message: str
    data: dict[str, Any]
    created_at: datetime.datetime


class MetricRead(ReadModel):
    seq: int
    attempt: int
    step: int
    epoch: float
    tokens: int
    values: dict[str, float]
    """loss, learning_rate, grad_norm, tokens_per_second, eval_loss, ..."""
    created_at: datetime.datetime


class LogChunkRead(ReadModel):
    seq: int
    attempt: int
    lines: int
    text: str
    created_at: datetime.datetime


class JobRowsRead(RowReport):
    object: Literal["job_rows"] = "job_rows"
    id: str
    """The job's."""
    attempt: int
    """Whose preparation it was."""


class AttemptRead(ReadModel):
    """One worker's try at the job."""

    object: Literal["attempt"] = "attempt"
    number: int
    hostname: str
    """The worker's machine."""
    started_at: datetime.datetime
    ended_at: datetime.datetime | None
    """Null while it runs."""
    outcome: JobStatus | None
    """The job's status when the attempt ended: `queued` means tried again."""
    fault: Fault | None
    """Whose fault its end was: none, infrastructure, training or user; null after success or a cancel."""
    exit_code: int | None
    """Of the trainer; -N is signal N."""
    reason: dict[str, Any] | None
    """Why it ended: code, message, remedy, log_tail."""
    resumed_from_step: int | None
    """The checkpoint after which it went on; null: from the beginning."""
    last_step: int | None


class CheckpointRead(ReadModel):
    """A checkpoint in the store: from it the job goes on."""

    object: Literal["checkpoint"] = "checkpoint"
    id: str
    step: int
    attempt: int
    bytes: int
    """Of the archive."""
    sha256: str
    """Of the archive."""
    metrics: dict[str, Any]
    created_at: datetime.datetime


def read_event(event: Event) -> EventRead:
    return EventRead(
        id=event.id,
        seq=event.seq,
        attempt=event.attempt,
        type=event.type,
        message=event.message,
        data=event.data,
        created_at=event.created_at,
    )


def read_metric(metric: Metric) -> MetricRead:
    return MetricRead(
        seq=metric.seq,
        attempt=metric.attempt,
        step=metric.step,
        epoch=metric.epoch,
        tokens=metric.tokens,
        values=metric.values,
        created_at=metric.created_at,
    )


def read_log_chunk(chunk: LogChunk) -> LogChunkRead:
    return LogChunkRead(
        seq=chunk.seq,
        attempt=chunk.attempt,
        lines=chunk.num_lines,
        text=chunk.text,
        created_at=chunk.created_at,
    )


def read_attempt(attempt: Attempt) -> AttemptRead:
    return AttemptRead(
        number=attempt.number,
        hostname=attempt.hostname,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        outcome=None if attempt.outcome is None else JobStatus(attempt.outcome),
        fault=None if attempt.fault is None else Fault(attempt.fault),
        exit_code=attempt.exit_code,
        reason=attempt.reason,
        resumed_from_step=attempt.resumed_from_step,
        last_step=attempt.last_step,
    )


def read_checkpoint(checkpoint: Checkpoint) -> CheckpointRead:
    return CheckpointRead(
        id=checkpoint.id,
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        bytes=checkpoint.num_bytes,
        sha256=checkpoint.sha256,
        metrics=checkpoint.metrics,
        created_at=checkpoint.created_at,
    )
