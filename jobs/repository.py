"""Every SELECT. Under the API's role, row-level security shows the transaction's tenant only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    Integer,
    Row,
    ScalarSelect,
    Select,
    Text,
    bindparam,
    case,
    exists,
    func,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs.errors import NotFound
from jobs.models import Adapter, ApiKey, Dataset, Event, Job, Json, LogChunk, Metric, Worker
from jobs.status import DatasetStatus, JobStatus

WORKER_ALIVE = timedelta(seconds=60)
"""A worker that was not seen for longer does not count as one."""


# --- Keys -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sends a request."""

    key_id: str
    tenant_id: str
    is_admin: bool


_keys = ApiKey.__table__.c
_IDENTIFY = select(
    _keys.id,
    _keys.tenant_id,
    _keys.is_admin,
    # In the same statement, for a round trip less: the transaction sees the key's tenant from here on.
    func.set_config("medtune.tenant", _keys.tenant_id, True),
).where(_keys.revoked_at.is_(None))
_IDENTIFY_BY_HASH = _IDENTIFY.where(_keys.key_hash == bindparam("key_hash"))
_IDENTIFY_BY_ID = _IDENTIFY.where(_keys.id == bindparam("key_id"))


def identify(session: Session, *, key_hash: bytes | None = None, key_id: str | None = None) -> Identity | None:
    """The owner of a key that is valid now; the transaction becomes its tenant's."""
    connection = session.connection()
    if key_hash is not None:
        row = connection.execute(_IDENTIFY_BY_HASH, {"key_hash": key_hash}).first()
    else:
        row = connection.execute(_IDENTIFY_BY_ID, {"key_id": key_id}).first()
    return None if row is None else Identity(row[0], row[1], row[2])


def list_keys(session: Session) -> Sequence[ApiKey]:
    return session.scalars(select(ApiKey).order_by(ApiKey.id)).all()


# --- Datasets ---------------------------------------------------------------------------------------------------


def get_dataset(session: Session, dataset_id: str) -> Dataset:
    dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        raise NotFound("dataset_not_found", f"there is no dataset {dataset_id!r}")
    return dataset


def list_datasets(session: Session, *, limit: int, after: str | None) -> Sequence[Dataset]:
    """Newest first; up to `limit` older than `after`."""
    return session.scalars(_page_of_newest(select(Dataset), Dataset.id, after, limit)).all()


def count_jobs_of_dataset(session: Session, dataset_id: str) -> int:
    uses = or_(Job.dataset_id == dataset_id, Job.validation_dataset_id == dataset_id)
    return session.scalar(select(func.count()).select_from(Job).where(uses)) or 0


def count_waiting_datasets(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(_waiting_datasets().subquery())) or 0


def lock_waiting_dataset(session: Session) -> Dataset | None:
    return session.scalar(_waiting_datasets().order_by(Dataset.id).limit(1).with_for_update(skip_locked=True))


def lock_dataset(session: Session, dataset_id: str) -> Dataset | None:
    return session.scalar(select(Dataset).where(Dataset.id == dataset_id).with_for_update())


def list_dataset_statuses(session: Session, job: Job) -> Sequence[DatasetStatus]:
    ids = [job.dataset_id, job.validation_dataset_id]
    return session.scalars(select(Dataset.status).where(Dataset.id.in_(ids))).all()


def list_datasets_of_job(session: Session, job: Job) -> Sequence[Dataset]:
    ids = [job.dataset_id, job.validation_dataset_id]
    return session.scalars(select(Dataset).where(Dataset.id.in_(ids))).all()


def _waiting_datasets() -> Select[Dataset]:
    return select(Dataset).where(
        Dataset.status == DatasetStatus.VALIDATING,
        or_(Dataset.lease_expires_at.is_(None), Dataset.lease_expires_at < func.now()),
    )


# --- Jobs -------------------------------------------------------------------------------------------------------


_JOB_VIEW_NAMES = (
    "id",
    "name",
    "status",
    "reason",
    "model",
    "spec",
    "priority",
    "num_gpus",
    "metadata",
    "parent_id",
    "attempt",
    "progress",
    "metrics",
    "verification",
    "cancel_requested_at",
    "created_at",
    "started_at",
    "finished_at",
)
_workers = Worker.__table__.c
_IS_ALIVE_TRAINER = (_workers.last_seen_at > func.now() - WORKER_ALIVE, _workers.queue == "train")
_ALIVE_GPUS = select(func.max(_workers.num_gpus)).where(*_IS_ALIVE_TRAINER).scalar_subquery()
_jobs, _adapters = Job.__table__.c, Adapter.__table__.c
_IS_QUEUED = _jobs.status == JobStatus.QUEUED
JOB_VIEW_COLUMNS = tuple(_jobs[name] for name in _JOB_VIEW_NAMES)
# Tables and not classes: rows that are only read need none of the ORM's bookkeeping.
_JOB_VIEW = select(
    *JOB_VIEW_COLUMNS,
    _adapters.state.label("adapter_state"),
    _adapters.num_bytes.label("adapter_bytes"),
    _adapters.sha256.label("adapter_sha256"),
    case((_IS_QUEUED, _ALIVE_GPUS)).label("largest_worker"),
).select_from(Job.__table__.outerjoin(Adapter.__table__, _adapters.job_id == _jobs.id))
_JOB_VIEWS = _JOB_VIEW.add_columns(null().label("queue_position"))
_ONE_JOB_VIEW = _JOB_VIEW.add_columns(
    case((_IS_QUEUED, func.medtune_queue_position(_jobs.id))).label("queue_position")
).where(_jobs.id == bindparam("job_id"))


def get_job_view(session: Session, job_id: str) -> Row[Any]:
    """The job's columns with its adapter's and its place in the queue.

    `queue_position` is 1 for the next to start and counts other tenants' jobs too; it and `largest_worker` (GPUs of
    the living training worker that has most) are null when the job is not queued.
    """
    row = session.connection().execute(_ONE_JOB_VIEW, {"job_id": job_id}).first()
    if row is None:
        raise _job_not_found(job_id)
    return row


_datasets = Dataset.__table__.c


def _select_column(name: str, column: ColumnElement[Any]) -> ScalarSelect[Any]:
    return select(column).where(_datasets.id == bindparam(name, type_=Text)).scalar_subquery()


_wanted_gpus = bindparam("gpus", type_=Integer)
_largest = select(func.max(_workers.num_gpus).label("gpus")).where(*_IS_ALIVE_TRAINER).subquery()
# Without a number: one GPU where a living worker has one, else the CPU.
_job_gpus = func.coalesce(_wanted_gpus, func.least(1, func.coalesce(_largest.c.gpus, 0)))
_roomiest = (
    select(_workers.gpu_name, _workers.gpu_memory_bytes, _workers.host_memory_bytes, _workers.disk_free_bytes)
    .where(*_IS_ALIVE_TRAINER, _workers.num_gpus >= _job_gpus)
    # Who does not know its memory may have enough.
    .order_by(
        case((_job_gpus > 0, _workers.gpu_memory_bytes)).desc().nulls_first(),
        _workers.host_memory_bytes.desc().nulls_first(),
    )
    .limit(1)
    .lateral("roomiest")
)
_SUBMISSION_FACTS = select(
    _select_column("dataset_id", _datasets.status).label("dataset_status"),
    _select_column("dataset_id", _datasets.num_rows).label("dataset_rows"),
    _select_column("dataset_id", _datasets.report["statistics"]).label("dataset_statistics"),
    _select_column("validation_id", _datasets.status).label("validation_status"),
    _largest.c.gpus.label("largest_worker"),
    _job_gpus.label("num_gpus"),
    *_roomiest.c,
).select_from(_largest.outerjoin(_roomiest, true()))
_LOCK_DATASETS = (
    select(_datasets.id).where(_datasets.id.in_(bindparam("ids", expanding=True))).with_for_update(read=True)
)


def get_submission_facts(session: Session, dataset_id: str, validation_id: str | None, gpus: int | None) -> Row[Any]:
    """What decides about a job on `gpus` GPUs (None: one where there is one).

    `dataset_status` and `validation_status` (null: none such), `dataset_rows` and `dataset_statistics` (null: not
    checked), `largest_worker`'s GPUs (null: none lives), the job's `num_gpus`, and the hardware of the worker with the
    most memory among those that have so many (null: unknown).

    A dataset that is validating is locked until the transaction's end: else its check could end unseen, and the job
    would wait for it for ever.
    """
    connection = session.connection()
    wanted = {"dataset_id": dataset_id, "validation_id": validation_id, "gpus": gpus}
    facts = connection.execute(_SUBMISSION_FACTS, wanted).one()
    if DatasetStatus.VALIDATING not in (facts.dataset_status, facts.validation_status):
        return facts
    connection.execute(_LOCK_DATASETS, {"ids": [dataset_id, validation_id]})
    return connection.execute(_SUBMISSION_FACTS, wanted).one()


def list_job_views(
    session: Session,
    *,
    limit: int,
    after: str | None = None,
    status: JobStatus | None = None,
    model: str | None = None,
    labels: Json | None = None,
) -> Sequence[Row[Any]]:
    """Newest first; up to `limit` older than `after`. Without places in the queue."""
    query = _JOB_VIEWS
    if status is not None:
        query = query.where(_jobs.status == status)
    if model is not None:
        query = query.where(_jobs.model == model)
    if labels:
        query = query.where(_jobs.metadata.contains(labels))
    return session.connection().execute(_page_of_newest(query, _jobs.id, after, limit)).all()


_RECENT_JOBS = 1000


def find_throughput(session: Session, *, model: str, quantization: str, num_gpus: int) -> float | None:
    """Median tokens per second of the tenant's recent jobs of that kind that succeeded."""
    recent = select(_jobs.status, _jobs.model, _jobs.num_gpus, _jobs.spec, _jobs.metrics)
    recent_jobs = recent.order_by(_jobs.id.desc()).limit(_RECENT_JOBS).subquery().c
    speed = recent_jobs.metrics["tokens_per_second"].astext.cast(Float)
    return session.scalar(
        select(func.percentile_cont(0.5).within_group(speed)).where(
            recent_jobs.status == JobStatus.SUCCEEDED,
            recent_jobs.model == model,
            recent_jobs.num_gpus == num_gpus,
            recent_jobs.spec["training"]["quantization"].astext == quantization,
        )
    )


def get_job(session: Session, job_id: str) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise _job_not_found(job_id)
    return job


def find_job_by_idempotency_key(session: Session, tenant_id: str, key: str) -> Job | None:
    """Whoever asks for the same key meanwhile waits until this transaction ends."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{tenant_id}/{key}", 0))))
    return session.scalar(select(Job).where(Job.tenant_id == tenant_id, Job.idempotency_key == key))


def get_adapter(session: Session, job_id: str) -> Adapter:
    adapter = session.get(Adapter, job_id)
    if adapter is None:
        status = get_job(session, job_id).status
        raise NotFound("adapter_not_found", f"the job is {status}; only a succeeded job has an adapter")
    return adapter


def lock_job(session: Session, job_id: str) -> Job:
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
    if job is None:
        raise _job_not_found(job_id)
    return job


def lock_best_queued_job(session: Session, num_gpus: int) -> Job | None:
    """Highest priority first, then the oldest, of those that fit on `num_gpus`."""
    return session.scalar(
        _queued_jobs()
        .where(Job.num_gpus <= num_gpus)
        .order_by(Job.priority.desc(), Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def lock_jobs_waiting_for_dataset(session: Session, dataset_id: str) -> Sequence[Job]:
    uses = or_(Job.dataset_id == dataset_id, Job.validation_dataset_id == dataset_id)
    return session.scalars(select(Job).where(Job.status == JobStatus.VALIDATING, uses).with_for_update()).all()


def lock_jobs_with_expired_leases(session: Session) -> Sequence[Job]:
    expired = select(Job).where(Job.lease_owner.is_not(None), Job.lease_expires_at < func.now())
    return session.scalars(expired.with_for_update(skip_locked=True)).all()


def count_queued_jobs(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(_queued_jobs().subquery())) or 0


def _queued_jobs() -> Select[Job]:
    return select(Job).where(
        Job.status == JobStatus.QUEUED, Job.not_before <= func.now(), Job.cancel_requested_at.is_(None)
    )


# --- What happened to a job -------------------------------------------------------------------------------------


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


# --- Workers ----------------------------------------------------------------------------------------------------


def check_reachable(session: Session) -> None:
    """Raises the driver's error when the database does not answer, or has no tables yet."""
    session.execute(select(exists(select(Worker.id))))


# --- Steps of the above -----------------------------------------------------------------------------------------


def _page_of_newest(
    query: Select[Any], key: ColumnElement[str] | InstrumentedAttribute[str], after: str | None, limit: int
) -> Select[Any]:
    """Ids sort by time, so that the last id of a page is the cursor of the next."""
    if after is not None:
        query = query.where(key < after)
    return query.order_by(key.desc()).limit(limit)


def _list_after(session: Session, table: Any, job_id: str, after: int, limit: int) -> Sequence[Any]:
    """Raises NotFound for a job that is not there; one that is may have none."""
    query = select(table).where(table.job_id == job_id, table.seq > after).order_by(table.seq).limit(limit)
    rows = session.scalars(query).all()
    if not rows:
        get_job(session, job_id)
    return rows


def _job_not_found(job_id: str) -> NotFound:
    return NotFound("job_not_found", f"there is no job {job_id!r}")
