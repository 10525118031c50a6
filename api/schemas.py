"""What clients read. Each `read_*` builds one from rows."""

import datetime
from typing import Any, Literal

from sqlalchemy import Row

from api.pages import ReadModel
from api.queue_place import QueuePlace, describe_place
from jobs.data_policy import count_findings, find_release_blocker
from jobs.models import Dataset, Worker
from jobs.status import AdapterState, DatasetStatus, JobStatus, OverlapPolicy, PhiPolicy
from trainer_core.data.phi.strategy import Strategy


class AttestationRead(ReadModel):
    name: str
    statement: str
    key_id: str
    at: datetime.datetime


class PhiRead(ReadModel):
    """What is known about identifiers of patients in the rows."""

    policy: PhiPolicy
    rule_set: str | None
    """The version of the rules that looked; null: nobody did."""
    findings: int | None
    """Null: nobody looked. 0 means none that these rules know, and not that there is none."""
    classes: dict[str, int] | None
    """Findings by class; the report says where they stand. With the policy `replace`, of what is left."""
    strategy: Strategy | None
    """How placeholders are made; null with another policy than `replace`."""
    patient_key: str | None
    """The field of the rows by which a patient's rows share their placeholders."""
    replaced: dict[str, int] | None
    """Replaced places by class; null: nothing was to be replaced, or the check is not done."""
    attestation: AttestationRead | None
    release_blocker: str | None
    """Why adapters that were trained on it cannot be released, as far as its identifiers go."""


class OverlapRead(ReadModel):
    """Rows that are there twice, or that also judge the model."""

    policy: OverlapPolicy
    rows: int | None
    """Rows with any finding; null: nobody looked."""
    counts: dict[str, int] | None
    """Rows by `duplicate_row`, `near_duplicate_row`, `benchmark_overlap` and `probe_overlap`, where there are any; the
    report says which."""


class DatasetRead(ReadModel):
    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    filename: str
    uri: str | None
    """The reference that it was fetched by; null: it was uploaded."""
    status: DatasetStatus
    """`validating`, `ready`, or `rejected`: then the report says why."""
    reason: dict[str, Any] | None
    """Why its check could not be made yet: code, message, remedy. It is tried again."""
    bytes: int
    """0 until a reference is fetched."""
    sha256: str | None
    """Of the rows as they are trained on; of the file as it was uploaded until the policy `replace` has changed it.
    Null until a reference is fetched."""
    rows: int | None
    """Null until the check is done."""
    rows_digest: str | None
    """SHA-256 over the sorted SHA-256 of its rows: the same rows in another order have the same."""
    phi: PhiRead
    overlap: OverlapRead
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
    init_from: dict[str, Any] | None
    """The job, and the checkpoint, if any, whose weights its adapter began with."""
    training: dict[str, Any]
    resources: dict[str, Any]
    safety: dict[str, Any] | None
    """Null: nothing is asked while it trains, and the adapter waits for a review before its release."""
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
    revision: str | None
    """The commit that a hub's model is pinned to."""
    digest: str | None
    """Of a folder's files when it was registered; it cannot be trained once they are others."""
    trust_remote_code: bool
    """Whether the operator lets code that comes with it run."""
    is_local: bool
    """Whether its files are here: a folder, or a hub's model that was pulled."""
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


def read_dataset(dataset: Dataset) -> DatasetRead:
    return DatasetRead(
        id=dataset.id,
        name=dataset.name,
        filename=dataset.filename,
        uri=dataset.uri,
        status=dataset.status,
        reason=dataset.reason,
        bytes=dataset.num_bytes,
        sha256=dataset.sha256 or None,
        rows=dataset.num_rows,
        rows_digest=dataset.rows_digest,
        phi=_read_phi(dataset),
        overlap=_read_overlap(dataset),
        created_at=dataset.created_at,
        validated_at=dataset.validated_at,
    )


def _read_phi(dataset: Dataset) -> PhiRead:
    found = (dataset.report or {}).get("phi", {})
    return PhiRead(
        policy=dataset.phi_policy,
        rule_set=found.get("rule_set"),
        findings=count_findings(dataset),
        classes=found.get("classes"),
        strategy=dataset.phi_strategy,
        patient_key=dataset.patient_key,
        replaced=(dataset.report or {}).get("replacement", {}).get("replaced"),
        attestation=AttestationRead(**dataset.attestation) if dataset.attestation else None,
        release_blocker=find_release_blocker(dataset),
    )


def _read_overlap(dataset: Dataset) -> OverlapRead:
    found = (dataset.report or {}).get("overlap", {})
    return OverlapRead(policy=dataset.overlap_policy, rows=found.get("rows_found"), counts=found.get("counts"))


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
        init_from=job.spec.get("init_from"),
        training=job.spec["training"],
        resources=job.spec["resources"],
        safety=job.spec.get("safety"),
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
