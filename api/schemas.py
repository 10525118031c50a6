"""What clients read. Each `read_*` builds one from rows."""

import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row

from jobs.models import Dataset, Event, LogChunk, Metric
from jobs.status import AdapterState, DatasetStatus, JobStatus

Item = TypeVar("Item")


class ReadModel(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Page(ReadModel, Generic[Item]):
    """A page of a list; ask for the next with `after` = the last item's id."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class CursorPage(Page[Item], Generic[Item]):
    """A page of what happened, oldest first; ask for what came later with `after` = cursor."""

    cursor: int


class DatasetRead(ReadModel):
    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    filename: str
    status: DatasetStatus
    """`validating`, `ready`, or `rejected`: then the report says why."""
    bytes: int
    sha256: str
    rows: int | None
    """Null until the check is done."""
    created_at: datetime.datetime
    validated_at: datetime.datetime | None


class Progress(ReadModel):
    step: int
    max_steps: int
    epoch: float
    tokens: int
    percent: float
    eta_seconds: float | None
    phase: str


class QueuePlace(ReadModel):
    position: int | None
    """1 for the next to start."""
    reason: str
    """What the job waits for."""


class AdapterRead(ReadModel):
    state: AdapterState
    bytes: int
    """Of the archive."""
    sha256: str
    """Of the archive."""
    url: str
    """Path of the download."""


class JobRead(ReadModel):
    object: Literal["job"] = "job"
    id: str
    name: str | None
    status: JobStatus
    reason: dict[str, Any] | None
    """Why it failed, was cancelled or waits again: code, message, remedy, log_tail."""
    model: str
    dataset: dict[str, Any]
    validation: dict[str, Any] | None
    training: dict[str, Any]
    resources: dict[str, Any]
    priority: int
    metadata: dict[str, str]
    parent: str | None
    attempt: int
    """How often a worker took it."""
    progress: Progress | None
    queue: QueuePlace | None
    """Null when the job does not wait."""
    metrics: dict[str, float] | None
    """The latest value of each."""
    adapter: AdapterRead | None
    verification: dict[str, Any] | None
    """What was proven about the adapter, in a process of its own."""
    cancel_requested_at: datetime.datetime | None
    created_at: datetime.datetime
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None


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


class ModelRead(ReadModel):
    object: Literal["model"] = "model"
    id: str
    source: Literal["folder", "hub"]
    trainable: bool
    """Whether jobs may name it, as far as its files tell."""
    problems: list[dict[str, str]]


class Deleted(ReadModel):
    id: str
    deleted: Literal[True] = True


def read_dataset(dataset: Dataset) -> DatasetRead:
    return DatasetRead(
        id=dataset.id,
        name=dataset.name,
        filename=dataset.filename,
        status=dataset.status,
        bytes=dataset.num_bytes,
        sha256=dataset.sha256,
        rows=dataset.num_rows,
        created_at=dataset.created_at,
        validated_at=dataset.validated_at,
    )


def read_job(job: Row[Any]) -> JobRead:
    """From a row of `repository.get_job_view` or `list_job_views`."""
    return JobRead(
        id=job.id,
        name=job.name,
        status=job.status,
        reason=job.reason,
        model=job.model,
        dataset=job.spec["dataset"],
        validation=job.spec["validation"],
        training=job.spec["training"],
        resources=job.spec["resources"],
        priority=job.priority,
        metadata=job.metadata,
        parent=job.parent_id,
        attempt=job.attempt,
        progress=Progress(**job.progress) if job.progress else None,
        queue=_describe_place(job),
        metrics=job.metrics,
        adapter=_read_adapter(job) if job.adapter_state else None,
        verification=job.verification,
        cancel_requested_at=job.cancel_requested_at,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def _read_adapter(job: Row[Any]) -> AdapterRead:
    return AdapterRead(
        state=job.adapter_state,
        bytes=job.adapter_bytes,
        sha256=job.adapter_sha256,
        url=f"/jobs/{job.id}/adapter",
    )


def _describe_place(job: Row[Any]) -> QueuePlace | None:
    if job.status == JobStatus.VALIDATING:
        return QueuePlace(position=None, reason="waits for the check of its dataset")
    if job.status != JobStatus.QUEUED:
        return None
    reason = "waits for a free worker"
    if job.largest_worker is None:
        reason = "no worker is running"
    elif job.largest_worker < job.num_gpus:
        reason = f"no running worker has {job.num_gpus} GPUs; the largest has {job.largest_worker}"
    return QueuePlace(position=job.queue_position, reason=reason)


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
