"""create the tables, the roles and the row-level security"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_22_1034"
down_revision = None
branch_labels = None
depends_on = None

ROLES = ("medtune_api", "medtune_worker")

TENANT_TABLES = ("datasets", "jobs", "adapters", "attempts", "checkpoints", "events", "log_chunks", "metrics")

GRANTS = {
    "medtune_api": {
        "api_keys": "SELECT, INSERT, UPDATE (revoked_at)",
        "workers": "SELECT",
        "datasets": "SELECT, INSERT, DELETE, UPDATE (name)",  # UPDATE also for SELECT ... FOR SHARE
        "jobs": "SELECT, INSERT, UPDATE",
        "events": "SELECT, INSERT",
        "adapters": "SELECT",
        "attempts": "SELECT",
        "checkpoints": "SELECT",
        "log_chunks": "SELECT",
        "metrics": "SELECT",
    },
    "medtune_worker": {
        "workers": "SELECT, INSERT, UPDATE, DELETE",
        "datasets": "SELECT, UPDATE",
        "jobs": "SELECT, UPDATE",
        "events": "SELECT, INSERT",
        "adapters": "SELECT, INSERT",
        "attempts": "SELECT, INSERT, UPDATE",
        "checkpoints": "SELECT, INSERT",
        "log_chunks": "SELECT, INSERT",
        "metrics": "SELECT, INSERT",
    },
}

CREATE_ROLE = """
DO $$ BEGIN
    CREATE ROLE {role} NOLOGIN NOSUPERUSER NOBYPASSRLS;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- Another database of this server made it.
END $$
"""

DROP_ROLE = """
DO $$ BEGIN
    DROP OWNED BY {role};
    DROP ROLE {role};
EXCEPTION WHEN dependent_objects_still_exist THEN NULL;  -- Another database of this server needs it.
END $$
"""

# SECURITY DEFINER: a position counts the jobs of other tenants too, which the caller may not see.
# plpgsql and not sql: it keeps its plan, where a function in SQL is planned at every call.
CREATE_QUEUE_POSITION = """
CREATE FUNCTION medtune_queue_position(wanted text) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    RETURN (
        SELECT NULLIF(count(ahead.id), 0)
        FROM jobs AS job JOIN jobs AS ahead
          ON ahead.priority > job.priority OR (ahead.priority = job.priority AND ahead.id <= job.id)
        WHERE job.id = wanted AND job.status = 'queued' AND ahead.status = 'queued'
    );
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("is_admin", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("num_gpus", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=20), server_default="validating", nullable=False),
        sa.Column("store_key", sa.Text(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("num_rows", sa.BigInteger(), nullable=True),
        sa.Column("report", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("validated_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["created_by"], ["api_keys.id"], name=op.f("fk_datasets_created_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_datasets_tenant_id_id")),
    )
    op.create_index(
        "ix_datasets_waiting", "datasets", ["id"], unique=False, postgresql_where=sa.text("status = 'validating'")
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("reason", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("validation_dataset_id", sa.Text(), nullable=True),
        sa.Column("spec", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("num_gpus", sa.Integer(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("request_hash", sa.Text(), nullable=True),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lost_attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("metrics", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("verification", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status IN ('cancelled', 'failed', 'succeeded')) = (finished_at IS NOT NULL)",
            name=op.f("ck_jobs_finished"),
        ),
        sa.CheckConstraint(
            "(status IN ('running', 'starting', 'stopping')) = (lease_owner IS NOT NULL) AND (lease_owner IS NULL) = (lease_expires_at IS NULL) AND (lease_owner IS NULL) = (heartbeat_at IS NULL)",
            name=op.f("ck_jobs_lease"),
        ),
        sa.CheckConstraint(
            "status IN ('cancelled', 'failed', 'held', 'paused', 'pausing', 'queued', 'running', 'starting', 'stopping', 'succeeded', 'validating')",
            name=op.f("ck_jobs_status"),
        ),
        sa.ForeignKeyConstraint(["created_by"], ["api_keys.id"], name=op.f("fk_jobs_created_by")),
        sa.ForeignKeyConstraint(["parent_id"], ["jobs.id"], name=op.f("fk_jobs_parent_id")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "dataset_id"],
            ["datasets.tenant_id", "datasets.id"],
            name=op.f("fk_jobs_tenant_id_dataset_id"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "validation_dataset_id"],
            ["datasets.tenant_id", "datasets.id"],
            name=op.f("fk_jobs_tenant_id_validation_dataset_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_jobs_tenant_id_id")),
        sa.UniqueConstraint("tenant_id", "idempotency_key", name=op.f("uq_jobs_tenant_id_idempotency_key")),
    )
    op.create_index("ix_jobs_dataset", "jobs", ["dataset_id"], unique=False)
    op.create_index(
        "ix_jobs_leases",
        "jobs",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("lease_owner IS NOT NULL"),
    )
    op.create_index("ix_jobs_metadata", "jobs", ["metadata"], unique=False, postgresql_using="gin")
    op.create_index(
        "ix_jobs_queue",
        "jobs",
        [sa.literal_column("priority DESC"), "id"],
        unique=False,
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index("ix_jobs_validation_dataset", "jobs", ["validation_dataset_id"], unique=False)
    op.create_table(
        "adapters",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=20), server_default="candidate", nullable=False),
        sa.Column("store_key", sa.Text(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_adapters_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_adapters")),
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("lease_epoch", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("reason", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_attempts")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_checkpoints_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
    )
    op.create_index("ix_checkpoints_job", "checkpoints", ["job_id", "step"], unique=False)
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_events")),
        sa.UniqueConstraint("id", name=op.f("uq_events_id")),
    )
    op.create_index("ix_events_job", "events", ["job_id", "seq"], unique=False)
    op.create_table(
        "log_chunks",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("num_lines", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_log_chunks_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_log_chunks")),
    )
    op.create_table(
        "metrics",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Float(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("values", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_metrics_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_metrics")),
    )
    _create_roles()
    for role, grants in GRANTS.items():
        for table, privileges in grants.items():
            op.execute(f"GRANT {privileges} ON {table} TO {role}")
    for table in TENANT_TABLES:
        _secure_rows(table)
    op.execute(CREATE_QUEUE_POSITION)
    op.execute("REVOKE ALL ON FUNCTION medtune_queue_position(text) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION medtune_queue_position(text) TO medtune_api")


def downgrade() -> None:
    op.execute("DROP FUNCTION medtune_queue_position(text)")
    op.drop_table("metrics")
    op.drop_table("log_chunks")
    op.drop_table("events")
    op.drop_table("checkpoints")
    op.drop_table("attempts")
    op.drop_table("adapters")
    op.drop_table("jobs")
    op.drop_table("datasets")
    op.drop_table("workers")
    op.drop_table("api_keys")
    for role in ROLES:
        op.execute(DROP_ROLE.format(role=role))


def _create_roles() -> None:
    for role in ROLES:
        op.execute(CREATE_ROLE.format(role=role))
        # The login user takes these roles on; a superuser may anyway, another needs the membership.
        op.execute(f"GRANT {role} TO CURRENT_USER")
        op.execute(f"GRANT USAGE ON SCHEMA public TO {role}")


def _secure_rows(table: str) -> None:
    """The API sees the rows of the transaction's tenant, and none without a tenant; workers see all."""
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    mine = "tenant_id = current_setting('medtune.tenant', true)"
    op.execute(f"CREATE POLICY tenant ON {table} TO medtune_api USING ({mine})")
    op.execute(f"CREATE POLICY every_tenant ON {table} TO medtune_worker USING (true)")
