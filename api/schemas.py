"""What clients read. Each `read_*` builds one from rows."""

import datetime
from typing import Any, Literal

from sqlalchemy import Row

from api.pages import ReadModel
from api.queue_place import QueuePlace, describe_place
from jobs.models import Dataset, Worker
from jobs.status import AdapterState, DatasetStatus, JobStatus


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


class Restarts(ReadModel):
    infrastructure: int
    """How often it was queued again after a fault that was not its own."""
    no_progress: int
    """How often in a row its training hung or crashed without a new checkpoint."""


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
    restarts: Restarts
    """How often it was tried again; the service's limits are for these."""
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


class ModelRead(ReadModel):
    object: Literal["model"] = "model"
    id: str
    source: Literal["folder", "hub"]
    trainable: bool
    """Whether jobs may name it, as far as its files tell."""
    problems: list[dict[str, str]]


class WorkerRead(ReadModel):
    object: Literal["worker"] = "worker"
    id: str
    queue: str
    """`train` runs jobs, `check` checks datasets."""
    hostname: str
    num_gpus: int
    """Those that it may use; 0 trains on the CPU."""
    gpu_name: str | None
    gpu_memory_bytes: int | None
    """Of each GPU; null: unknown."""
    host_memory_bytes: int | None
    disk_free_bytes: int | None
    problem: str | None
    """Why it takes no job now."""
    started_at: datetime.datetime
    last_seen_at: datetime.datetime


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
        restarts=Restarts(infrastructure=job.infra_restarts, no_progress=job.no_progress_restarts),
        progress=Progress(**job.progress) if job.progress else None,
        queue=describe_place(job),
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


def read_worker(worker: Worker) -> WorkerRead:
    return WorkerRead(
        id=worker.id,
        queue=worker.queue,
        hostname=worker.hostname,
        num_gpus=worker.num_gpus,
        gpu_name=worker.gpu_name,
        gpu_memory_bytes=worker.gpu_memory_bytes,
        host_memory_bytes=worker.host_memory_bytes,
        disk_free_bytes=worker.disk_free_bytes,
        problem=worker.problem,
        started_at=worker.started_at,
        last_seen_at=worker.last_seen_at,
    )
