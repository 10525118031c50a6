"""Jobs, one and many, as clients read them; and single rows under a lock."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Float, Row, and_, bindparam, case, func, null, or_, select, true
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.models import Adapter, ApiKey, Job, Json
from jobs.repository.pages import page_of_newest
from jobs.repository.workers import IS_ALIVE_TRAINER, workers
from jobs.statements import Statement
from jobs.status import JobStatus

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
    "infra_restarts",
    "no_progress_restarts",
    "not_before",
    "progress",
    "metrics",
    "verification",
    "cancel_requested_at",
    "created_at",
    "started_at",
    "finished_at",
)
_jobs, _adapters, _keys = Job.__table__.c, Adapter.__table__.c, ApiKey.__table__.c
_IS_QUEUED = _jobs.status == JobStatus.QUEUED
JOB_VIEW_COLUMNS = tuple(_jobs[name] for name in _JOB_VIEW_NAMES)
QUEUE_FACTS = ("queue_position", "largest_worker", "num_able_workers", "worker_problem", "key_running", "key_limit")
"""Of a queued job, else null: its place (1 is the next to start; other tenants' jobs count too), the GPUs of the living
training worker that has most, how many of those workers could take it now, why one of the others cannot, how many jobs
of its key run, and how many may."""
# Tables and not classes: rows that are only read need none of the ORM's bookkeeping.
_others = Job.__table__.alias("others")
_able = and_(workers.problem.is_(None), workers.num_gpus >= _jobs.num_gpus)
_fleet = (
    select(
        func.max(workers.num_gpus).label("largest_worker"),
        func.count().filter(_able).label("num_able_workers"),
        func.max(workers.problem).filter(workers.num_gpus >= _jobs.num_gpus).label("worker_problem"),
    )
    .where(*IS_ALIVE_TRAINER, _IS_QUEUED)
    .lateral("fleet")
)
_key_running = (
    select(func.count())
    .where(_others.c.created_by == _jobs.created_by, _others.c.lease_owner.is_not(None))
    .scalar_subquery()
)
_key_limit = select(_keys.max_running).where(_keys.id == _jobs.created_by).scalar_subquery()
_JOB_VIEW = select(
    *JOB_VIEW_COLUMNS,
    _adapters.state.label("adapter_state"),
    _adapters.num_bytes.label("adapter_bytes"),
    _adapters.sha256.label("adapter_sha256"),
)
_WITH_ADAPTER = Job.__table__.outerjoin(Adapter.__table__, _adapters.job_id == _jobs.id)
_JOB_VIEWS = _JOB_VIEW.add_columns(*(null().label(name) for name in QUEUE_FACTS)).select_from(_WITH_ADAPTER)
ONE_JOB_VIEW = Statement(
    _JOB_VIEW.add_columns(
        case((_IS_QUEUED, func.medtune_queue_position(_jobs.id))).label("queue_position"),
        *_fleet.c,
        case((_IS_QUEUED, _key_running)).label("key_running"),
        case((_IS_QUEUED, _key_limit)).label("key_limit"),
    )
    .select_from(_WITH_ADAPTER.join(_fleet, true()))
    .where(_jobs.id == bindparam("job_id"))
)


def get_job_view(session: Session, job_id: str) -> Row[Any]:
    """The job's columns with its adapter's and QUEUE_FACTS."""
    row = ONE_JOB_VIEW.first(session, job_id=job_id)
    if row is None:
        raise _job_not_found(job_id)
    return row


def list_job_views(
    session: Session,
    *,
    limit: int,
    after: str | None = None,
    status: JobStatus | None = None,
    model: str | None = None,
    labels: Json | None = None,
    without_labels: bool = False,
) -> Sequence[Row[Any]]:
    """Newest first; up to `limit` older than `after`. QUEUE_FACTS are null."""
    query = _JOB_VIEWS
    if status is not None:
        query = query.where(_jobs.status == status)
    if model is not None:
        query = query.where(_jobs.model == model)
    if labels:
        query = query.where(_jobs.metadata.contains(labels))
    if without_labels:
        query = query.where(_jobs.metadata == {})
    return session.connection().execute(page_of_newest(query, _jobs.id, after, limit)).all()


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


def find_known_jobs(session: Session, job_ids: Collection[str]) -> set[str]:
    """Those of the ids that are a job's."""
    return set(session.scalars(select(Job.id).where(Job.id.in_(job_ids))))


def get_job(session: Session, job_id: str) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise _job_not_found(job_id)
    return job


def find_adapter(session: Session, job_id: str) -> Adapter | None:
    return session.get(Adapter, job_id)


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


def lock_jobs_waiting_for_dataset(session: Session, dataset_id: str) -> Sequence[Job]:
    uses = or_(Job.dataset_id == dataset_id, Job.validation_dataset_id == dataset_id)
    return session.scalars(select(Job).where(Job.status == JobStatus.VALIDATING, uses).with_for_update()).all()


def _job_not_found(job_id: str) -> NotFound:
    return NotFound("job_not_found", f"there is no job {job_id!r}")
