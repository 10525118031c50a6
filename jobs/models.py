"""SQLAlchemy tables. Enums are strings; every tenant's row carries its `tenant_id`."""

import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs.status import (
    FINAL,
    OWNED,
    AdapterState,
    DatasetStatus,
    ExportStatus,
    JobStatus,
    OverlapPolicy,
    PhiPolicy,
    ReviewCause,
    ReviewState,
    UploadStatus,
)
from trainer_core.data.phi.strategy import Strategy

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
        list[str]: ARRAY(Text),
        JobStatus: String(20),
        DatasetStatus: String(20),
        ExportStatus: String(20),
        PhiPolicy: String(20),
        Strategy: String(30),
        OverlapPolicy: String(20),
        AdapterState: String(20),
        ReviewCause: String(20),
        ReviewState: String(20),
        UploadStatus: String(20),
    }


class ApiKey(Base):
    """A key of a tenant. Only its keyed hash is stored."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("(previous_key_hash IS NULL) = (previous_valid_until IS NULL)", name="rotation"),
        Index("ix_api_keys_tenant", "tenant_id", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str]
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    """HMAC-SHA-256 under the service's secret key."""
    previous_key_hash: Mapped[bytes | None] = mapped_column(unique=True)
    """Of the value before the last rotation."""
    previous_valid_until: Mapped[datetime.datetime | None]
    """Until then that value opens, too."""
    is_admin: Mapped[bool] = mapped_column(server_default=text("false"))
    """It has every scope, whatever `scopes` says."""
    scopes: Mapped[list[str]]
    max_running: Mapped[int | None] = mapped_column(Integer)
    """As many of its jobs run at once; null: as many as fit."""
    max_queued: Mapped[int | None] = mapped_column(Integer)
    """As many of its jobs may wait; null: any number."""
    max_storage_bytes: Mapped[int | None]
    """So much its datasets may take; null: any number."""
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime.datetime | None]
    """From then on it opens nothing; null: never."""
    last_used_at: Mapped[datetime.datetime | None]
    """To the minute: it is not written at every request."""
    revoked_at: Mapped[datetime.datetime | None]


class Dataset(Base):
    """Rows that a client uploaded. The bytes are in the store under `store_key`."""

    __tablename__ = "datasets"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        CheckConstraint("phi_policy <> 'off' OR attestation IS NOT NULL", name="attested"),
        CheckConstraint("(phi_policy = 'replace') = (phi_strategy IS NOT NULL)", name="strategy"),
        Index("ix_datasets_waiting", "id", postgresql_where=text("status = 'validating'")),
        Index("ix_datasets_leftovers", "id", postgresql_where=text("has_leftovers")),
        Index("ix_datasets_created_by", "created_by"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str]
    filename: Mapped[str]
    uri: Mapped[str | None]
    """Where the worker that checks it fetches its bytes; null: they were uploaded."""
    status: Mapped[DatasetStatus] = mapped_column(server_default=DatasetStatus.VALIDATING)
    store_key: Mapped[str]
    """Of the rows as they are trained on: with the policy `replace` those without the identifiers that were found.
    Nothing is there once the dataset was rejected: nobody can train on it, and its rows may hold identifiers."""
    num_bytes: Mapped[int]
    sha256: Mapped[str]
    """Empty until a reference's bytes are fetched."""
    has_leftovers: Mapped[bool] = mapped_column(server_default=text("false"))
    """Its folder in the store may hold more than it should: the file with the identifiers, which is to go."""
    num_rows: Mapped[int | None]
    rows_digest: Mapped[str | None]
    """SHA-256 over the sorted hashes of its rows: the same rows in another order have the same."""
    report: Mapped[Json | None]
    """What validation found, by line number."""
    reason: Mapped[Json | None]
    """Why its check could not be made when a worker last tried: code, message, remedy. Null once it is checked."""
    phi_policy: Mapped[PhiPolicy] = mapped_column(server_default=PhiPolicy.REPORT)
    phi_strategy: Mapped[Strategy | None]
    """How the placeholders are made; of the policy `replace` only."""
    patient_key: Mapped[str | None]
    """The field of the rows that says whose they are: then a patient's rows share their placeholders."""
    overlap_policy: Mapped[OverlapPolicy] = mapped_column(server_default=OverlapPolicy.REPORT)
    attestation: Mapped[Json | None]
    """Who says that it may be trained on as it is, and why: name, statement, key_id, at."""
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime.datetime | None]
    """A worker validates it until then."""
    created_by: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    validated_at: Mapped[datetime.datetime | None]

    @property
    def store_folder(self) -> str:
        return build_store_folder(self.id)


def build_store_folder(dataset_id: str) -> str:
    """Everything that the store has of a dataset."""
    return f"datasets/{dataset_id}"


class Upload(Base):
    """A file that comes in parts, and becomes a dataset when it is completed."""

    __tablename__ = "uploads"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        Index("ix_uploads_pending", "expires_at", postgresql_where=text("status = 'pending'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    filename: Mapped[str]
    num_bytes: Mapped[int]
    """As announced."""
    options: Mapped[Json]
    """What the client says of the dataset."""
    status: Mapped[UploadStatus] = mapped_column(server_default=UploadStatus.PENDING)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id", ondelete="SET NULL"))
    """What it became."""
    created_by: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime.datetime] = mapped_column(server_default=text("now() + interval '1 hour'"))

    @property
    def store_folder(self) -> str:
        return f"uploads/{self.id}"


class UploadPart(Base):
    """A part of an upload. Its bytes are in the store until the upload is completed, cancelled or expired."""

    __tablename__ = "upload_parts"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "upload_id"], ["uploads.tenant_id", "uploads.id"], ondelete="CASCADE"),
        Index("ix_upload_parts_upload", "upload_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str]
    tenant_id: Mapped[str]
    num_bytes: Mapped[int]
    store_key: Mapped[str]
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class RowShard(Base):
    """Hashes of a dataset's rows that begin with the byte `shard`, sorted, one after the other.

    With the policy `replace` also of the rows as they were uploaded: keyed, with the vault's key.
    """

    __tablename__ = "row_shards"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "dataset_id"], ["datasets.tenant_id", "datasets.id"], ondelete="CASCADE"),
        Index("ix_row_shards_shard", "tenant_id", "shard"),
    )

    dataset_id: Mapped[str] = mapped_column(primary_key=True)
    is_uploaded: Mapped[bool] = mapped_column(primary_key=True)
    """The rows as they were uploaded, and not as they are trained on."""
    shard: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    tenant_id: Mapped[str]
    key_version: Mapped[int | None]
    hashes: Mapped[bytes]


class VaultRow(Base):
    """What a placeholder stands for, encrypted: an entry of `trainer_core.data.phi.vault`.

    One value may have two placeholders: under `expert_determination` a short name has that of the person it belongs to.
    """

    __tablename__ = "vault_entries"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "dataset_id"], ["datasets.tenant_id", "datasets.id"], ondelete="CASCADE"),
    )

    dataset_id: Mapped[str] = mapped_column(primary_key=True)
    scope: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    blind_index: Mapped[str] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    key_version: Mapped[int]
    nonce: Mapped[str]
    ciphertext: Mapped[str]


class Job(Base):
    """A client's wish and all that became of it. `status` is changed by jobs.lifecycle only."""

    __tablename__ = "jobs"
    __mapper_args__ = {"eager_defaults": True}
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
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
        Index("ix_jobs_initial_job", "initial_job_id", postgresql_where=text("initial_job_id IS NOT NULL")),
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
    initial_job_id: Mapped[str | None] = mapped_column(Computed("spec -> 'init_from' ->> 'job'", persisted=True))
    """The job whose weights its adapter begins with; it may be deleted."""
    priority: Mapped[int] = mapped_column(Integer)
    num_gpus: Mapped[int] = mapped_column(Integer)
    labels: Mapped[Json] = mapped_column("metadata")
    idempotency_key: Mapped[str | None]
    """Of the request that made it."""
    parent_id: Mapped[str | None]
    """The job that it tries again, which may be deleted."""
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


class IdempotencyKey(Base):
    """The answer to a request that created something, for whoever sends it again: jobs.idempotency."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    retry_count: Mapped[int] = mapped_column(Integer)
    """How often the client had sent it before."""
    answer: Mapped[str | None]
    """JSON; null only while its transaction lasts."""
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


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


class JobRows(Base):
    """How a job's rows look to its model: `trainer_core.data.row_report.RowReport`, which shows some of them."""

    __tablename__ = "job_rows"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[str]
    attempt: Mapped[int] = mapped_column(Integer)
    """Whose preparation it is of: the newest."""
    report: Mapped[Json]
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


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
    name: Mapped[str | None]
    model: Mapped[str]
    """Of its job, for those who may not see that: what is released is for everybody."""
    state: Mapped[AdapterState] = mapped_column(server_default=AdapterState.CANDIDATE)
    """Changed by jobs.lifecycle only."""
    state_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    decisions: Mapped[list[Json]] = mapped_column(server_default=text("'[]'"))
    """Who approved, released or rejected it: to, name, key_id, reason, at."""
    store_key: Mapped[str]
    num_bytes: Mapped[int]
    sha256: Mapped[str]
    provenance: Mapped[Json | None]
    """With what it was made: base, datasets, hyper-parameters, plan, packages and code."""
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class Export(Base):
    """A job's adapter merged into its base, as one archive in the store, or on its way there."""

    __tablename__ = "exports"
    __table_args__ = (
        CheckConstraint("(status = 'ready') = (store_key IS NOT NULL)", name="stored"),
        CheckConstraint("(status = 'failed') = (reason IS NOT NULL)", name="reason"),
        CheckConstraint("status = 'merging' OR lease_owner IS NULL", name="lease"),
        Index("ix_exports_waiting", "created_at", postgresql_where=text("status = 'merging'")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[str]
    status: Mapped[ExportStatus] = mapped_column(server_default=ExportStatus.MERGING)
    reason: Mapped[Json | None]
    """Why it failed: code, message, remedy."""
    tries: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    store_key: Mapped[str | None]
    num_bytes: Mapped[int | None]
    sha256: Mapped[str | None]
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime.datetime | None]
    created_by: Mapped[str]
    """The id of the API key that asked last."""
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime.datetime | None]


class SafetyRound(Base):
    """What the safety checks found at a step. `seq` is the cursor."""

    __tablename__ = "safety_rounds"
    __table_args__ = (UniqueConstraint("job_id", "attempt", "step", "is_last"),)

    seq: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    tenant_id: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column(Integer)
    step: Mapped[int]
    is_last: Mapped[bool]
    """After the last step: every probe was asked."""
    ok: Mapped[bool]
    """The answers were judged; false: they could not be."""
    message: Mapped[str]
    summary: Mapped[Json]
    """Versions of probes and rules, seconds, and the numbers of each check."""
    num_findings: Mapped[int] = mapped_column(Integer)
    findings: Mapped[list[Json]]
    """The first of them, the critical ones before all others."""
    open_findings: Mapped[list[Json]]
    """Those that stand in the way of a release, until two persons accept them: probe_id, check, ..."""
    escalation: Mapped[str | None]
    """What they did to the run: `hold`, `stop`, or nothing."""
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class Review(Base):
    """Findings of the safety checks that people decide about. Changed by jobs.lifecycle only."""

    __tablename__ = "reviews"
    __table_args__ = (
        CheckConstraint("(state IN ('open', 'awaiting_second')) = (closed_at IS NULL)", name="closed"),
        CheckConstraint(
            "state <> 'approved' OR (jsonb_array_length(decisions) = 2 "
            "AND decisions -> 0 ->> 'key_id' <> decisions -> 1 ->> 'key_id')",
            name="two_persons",
        ),
        Index("ix_reviews_job", "job_id"),
        Index("uq_reviews_open", "job_id", unique=True, postgresql_where=text("closed_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    cause: Mapped[ReviewCause]
    attempt: Mapped[int] = mapped_column(Integer)
    step: Mapped[int | None]
    findings: Mapped[list[Json]]
    """probe_id, check, severity, explanation, ..."""
    state: Mapped[ReviewState] = mapped_column(server_default=ReviewState.OPEN)
    decisions: Mapped[list[Json]] = mapped_column(server_default=text("'[]'"))
    """Each person's: to, name, key_id, reason, at."""
    opened_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    closed_at: Mapped[datetime.datetime | None]


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


class WebhookEndpoint(Base):
    """A URL that is told of a tenant's jobs. Its secret is derived and not stored: `jobs.webhooks.messages`."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (UniqueConstraint("tenant_id", "url"), UniqueConstraint("tenant_id", "id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    url: Mapped[str]
    all_jobs: Mapped[bool]
    """Else only of those that name the URL in their request."""
    secret_version: Mapped[int] = mapped_column(Integer)
    """Counts its secrets."""
    secret_hash: Mapped[bytes]
    """Of the newest: a sender with another secret key must not sign."""
    previous_secret_until: Mapped[datetime.datetime | None]
    """Until then messages are signed with the secret before, too."""
    created_by: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())


class WebhookDelivery(Base):
    """A message to an endpoint, and what became of it. It is written with the change that it tells of."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "endpoint_id"], ["webhook_endpoints.tenant_id", "webhook_endpoints.id"], ondelete="CASCADE"
        ),
        Index("ix_webhook_deliveries_due", "endpoint_id", "next_at", postgresql_where=text("next_at IS NOT NULL")),
    )

    endpoint_id: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    """The id of the job's event; the receiver knows a message again by it."""
    tenant_id: Mapped[str]
    subject_id: Mapped[str]
    """The job; of a test the endpoint itself."""
    type: Mapped[str]
    created_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    next_at: Mapped[datetime.datetime | None] = mapped_column(server_default=func.now())
    """When it is tried next, at the earliest; null when it is over."""
    num_tries: Mapped[int] = mapped_column(Integer, server_default="0")
    tried_at: Mapped[datetime.datetime | None]
    status_code: Mapped[int | None] = mapped_column(Integer)
    """Of the last answer."""
    error: Mapped[str | None]
    """Why the last try failed; null when it did not."""
    delivered_at: Mapped[datetime.datetime | None]


class Deletion(Base):
    """The proof that a job or a dataset was deleted, and how far that is. It names ids, numbers and hashes only."""

    __tablename__ = "deletions"
    __table_args__ = (
        CheckConstraint("kind IN ('job', 'dataset')", name="kind"),
        CheckConstraint("completed_at IS NULL OR files_deleted_at IS NOT NULL", name="completed"),
        UniqueConstraint("tenant_id", "subject_id"),
        Index("ix_deletions_open", "id", postgresql_where=text("completed_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    kind: Mapped[str]
    """`job` or `dataset`."""
    subject_id: Mapped[str]
    """Of what was deleted."""
    requested_by: Mapped[str]
    """The id of the API key."""
    requested_at: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    """In this moment its rows went."""
    record: Mapped[Json]
    """What was deleted: hashes and numbers."""
    record_sha256: Mapped[str]
    """Of `record` as JSON with sorted keys and without spaces; the audit log has it, too."""
    files: Mapped[list[Json]]
    """Objects of the store: key, bytes, sha256 (null where it is not known)."""
    work_folders: Mapped[list[Json]]
    """Of attempts on the workers' machines: attempt, host, deleted_at (null: not yet)."""
    files_deleted_at: Mapped[datetime.datetime | None]
    """The store has nothing of it any more."""
    completed_at: Mapped[datetime.datetime | None]
    """And no machine has."""

    @property
    def store_folders(self) -> tuple[str, ...]:
        """Everything that the store has of it."""
        if self.kind == "dataset":
            return (build_store_folder(self.subject_id),)
        return tuple(f"{kind}/{self.subject_id}" for kind in ("adapters", "checkpoints", "exports"))


class AuditEntry(Base):
    """Who did what. A trigger numbers and chains the entries of each tenant; nobody changes or deletes one."""

    __tablename__ = "audit_entries"
    __table_args__ = (Index("ix_audit_entries_object", "tenant_id", "object_id", "action", "actor", "at"),)

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Counts from 1 per tenant, without a gap."""
    at: Mapped[datetime.datetime]
    actor: Mapped[str]
    """The id of the API key, `operator` for who works on the database by the
    command line, or `worker` for the end of a deletion."""
    action: Mapped[str]
    object_id: Mapped[str | None]
    result: Mapped[str]
    """`ok`, or the code of the refusal."""
    data: Mapped[Json]
    record: Mapped[str]
    """All of the above as JSON: what the hash is over."""
    previous_hash: Mapped[bytes]
    hash: Mapped[bytes]
    """SHA-256 over the previous entry's hash and this record."""


class AuditHead(Base):
    """The last entry of each tenant's chain. Only the trigger writes here."""

    __tablename__ = "audit_heads"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int]
    hash: Mapped[bytes]


TENANT_TABLES = tuple(
    table.name
    for table in Base.metadata.sorted_tables
    if "tenant_id" in table.columns and table.name != ApiKey.__tablename__
)
"""Tables under row-level security. API keys are not: reading one is how a tenant becomes known."""
