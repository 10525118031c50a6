"""SQLAlchemy tables. Enums are strings; every tenant's row carries its `tenant_id`."""

import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs.status import FINAL, OWNED, AdapterState, DatasetStatus, JobStatus

Json = dict[str, Any]


def _in(column: str, statuses: frozenset[JobStatus]) -> str:
    names = ", ".join(f"'{status}'" for status in sorted(statuses))
    return f"{column} IN ({names})"


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {
        str: Text,
        int: BigInteger,
        float: Float,
        bytes: LargeBinary,
        datetime.datetime: DateTime(timezone=True),
        Json: JSONB(none_as_null=True),
        list[Json]: JSONB(none_as_null=True),
        JobStatus: String(20),
        DatasetStatus: String(20),
        AdapterState: String(20),
    }


class ApiKey(Base):
    """A key of a tenant. Only its keyed hash is stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str]
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    """HMAC-SHA-256 under the service's secret key."""
    is_admin: Mapped[bool] = mapped_column(server_default=text("false"))
    max_running: Mapped[int | None] = mapped_column(Integer)
    """As many of its jobs run at once; null: as many as fit."""
    max_queued: Mapped[int | None] = mapped_column(Integer)
    """As many of its jobs may wait; null: any number."""
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime.datetime | None]


class Dataset(Base):
    """Rows that a client uploaded. The bytes are in the store under `store_key`."""

    __tablename__ = "datasets"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        Index("ix_datasets_waiting", "id", postgresql_where=text("status = 'validating'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str]
    filename: Mapped[str]
    status: Mapped[DatasetStatus] = mapped_column(server_default=DatasetStatus.VALIDATING)
    store_key: Mapped[str]
    num_bytes: Mapped[int]
    sha256: Mapped[str]
    num_rows: Mapped[int | None]
    report: Mapped[Json | None]
    """What validation found, by line number."""
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime.datetime | None]
    """A worker validates it until then."""
    created_by: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    validated_at: Mapped[datetime.datetime | None]


class Job(Base):
    """A client's wish and all that became of it. `status` is changed by jobs.lifecycle only."""

    __tablename__ = "jobs"
    __mapper_args__ = {"eager_defaults": True}
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "idempotency_key"),
        ForeignKeyConstraint(["tenant_id", "dataset_id"], ["datasets.tenant_id", "datasets.id"]),
        ForeignKeyConstraint(["tenant_id", "validation_dataset_id"], ["datasets.tenant_id", "datasets.id"]),
        CheckConstraint(_in("status", frozenset(JobStatus)), name="status"),
        CheckConstraint(
            f"({_in('status', OWNED)}) = (lease_owner IS NOT NULL) "
            "AND (lease_owner IS NULL) = (lease_expires_at IS NULL) "
            "AND (lease_owner IS NULL) = (heartbeat_at IS NULL)",
            name="lease",
        ),
        CheckConstraint(f"({_in('status', FINAL)}) = (finished_at IS NOT NULL)", name="finished"),
        # Claims look at the first of each key and number of GPUs; places in the queue are counted by key.
        Index(
            "ix_jobs_queue",
            *("num_gpus", "created_by", text("priority DESC"), "id"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index(
            "ix_jobs_places",
            *("created_by", text("priority DESC"), "id"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index("ix_jobs_leases", "lease_expires_at", postgresql_where=text("lease_owner IS NOT NULL")),
        Index("ix_jobs_metadata", "metadata", postgresql_using="gin"),
        Index("ix_jobs_dataset", "dataset_id"),
        Index("ix_jobs_validation_dataset", "validation_dataset_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    status: Mapped[JobStatus]
    reason: Mapped[Json | None]
    """Why it ended or waits again: code, message, remedy, log_tail."""
    name: Mapped[str | None]
    model: Mapped[str]
    dataset_id: Mapped[str]
    validation_dataset_id: Mapped[str | None]
    spec: Mapped[Json]
    """The JobSpec as accepted."""
    priority: Mapped[int] = mapped_column(Integer)
    num_gpus: Mapped[int] = mapped_column(Integer)
    labels: Mapped[Json] = mapped_column("metadata")
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[str | None]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    created_by: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))

    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    infra_restarts: Mapped[int] = mapped_column(Integer, server_default="0")
    """How often it was queued again after a fault of a machine, a network or the training."""
    no_progress_restarts: Mapped[int] = mapped_column(Integer, server_default="0")
    """How often in a row its training hung or crashed without a new checkpoint."""
    lease_epoch: Mapped[int] = mapped_column(server_default="0")
    """Rises with every owner; a write of an older epoch changes nothing."""
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime.datetime | None]
    heartbeat_at: Mapped[datetime.datetime | None]
    queued_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    """Since when it waits for a worker."""
    not_before: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    """It waits at least until then, after a failure."""
    deadline_at: Mapped[datetime.datetime | None]
    """When this attempt uses up the job's time limit."""
    cancel_requested_at: Mapped[datetime.datetime | None]

    progress: Mapped[Json | None]
    progress_at: Mapped[datetime.datetime | None]
    metrics: Mapped[Json | None]
    """The latest value of each."""
    verification: Mapped[Json | None]

    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]


class Attempt(Base):
    """One worker's try at a job."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index("uq_attempts_open", "job_id", unique=True, postgresql_where=text("ended_at IS NULL")),
        Index("ix_attempts_worker", "worker_id", postgresql_where=text("ended_at IS NULL")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    tenant_id: Mapped[str]
    lease_epoch: Mapped[int]
    worker_id: Mapped[str]
    """The owner of its lease."""
    hostname: Mapped[str]
    resumed_from_step: Mapped[int | None]
    last_step: Mapped[int | None]
    log_offset: Mapped[int] = mapped_column(server_default="0")
    """Bytes of train.log that are in `log_chunks`."""
    events_offset: Mapped[int] = mapped_column(server_default="0")
    """Bytes of events.jsonl that are in `events` and `metrics`."""
    started_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime.datetime | None]
    outcome: Mapped[str | None]
    """The job's status when the attempt ended."""
    exit_code: Mapped[int | None] = mapped_column(Integer)
    """Of the trainer; -N is signal N."""
    fault: Mapped[str | None]
    """Whose fault its end was; null when it was nobody's failure."""
    reason: Mapped[Json | None]


class Event(Base):
    """Something that happened to a job. `seq` is the cursor: per job, its order is the commits' order."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job", "job_id", "seq"),)

    seq: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    tenant_id: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column(Integer)
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[Json]
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class Metric(Base):
    """The numbers of one training step. `seq` counts from 1 per job, over its attempts."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    attempt: Mapped[int] = mapped_column(Integer)
    step: Mapped[int]
    epoch: Mapped[float]
    tokens: Mapped[int]
    values: Mapped[Json]
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class LogChunk(Base):
    """Whole lines of a trainer's output, up to 64 KiB. `seq` counts from 1 per job, over its attempts."""

    __tablename__ = "log_chunks"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    attempt: Mapped[int] = mapped_column(Integer)
    num_lines: Mapped[int] = mapped_column(Integer)
    text: Mapped[str]
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class Checkpoint(Base):
    """A checkpoint in the store, from which any worker can go on; it was whole when it was put there."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "attempt", "step"), Index("ix_checkpoints_job", "job_id", "step"))

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column(Integer)
    step: Mapped[int]
    store_key: Mapped[str]
    num_bytes: Mapped[int]
    """Of the archive in the store."""
    sha256: Mapped[str]
    """Of the archive in the store."""
    metrics: Mapped[Json]
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class Adapter(Base):
    """A succeeded job's adapter, as one archive in the store."""

    __tablename__ = "adapters"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[str]
    state: Mapped[AdapterState] = mapped_column(server_default=AdapterState.CANDIDATE)
    store_key: Mapped[str]
    num_bytes: Mapped[int]
    sha256: Mapped[str]
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class Worker(Base):
    """A worker process that takes jobs or validates datasets."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    queue: Mapped[str]
    hostname: Mapped[str]
    pid: Mapped[int]
    num_gpus: Mapped[int] = mapped_column(Integer)
    gpu_name: Mapped[str | None]
    gpu_memory_bytes: Mapped[int | None]
    """Of each GPU."""
    host_memory_bytes: Mapped[int | None]
    disk_free_bytes: Mapped[int | None]
    problem: Mapped[str | None]
    """Why it takes no job now: it shuts down, or its disk is nearly full."""
    started_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


TENANT_TABLES = tuple(
    table.name
    for table in Base.metadata.sorted_tables
    if "tenant_id" in table.columns and table.name != ApiKey.__tablename__
)
"""Tables under row-level security. API keys are not: reading one is how a tenant becomes known."""
