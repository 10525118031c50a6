"""keep answers by idempotency key, for every route that creates something; take files in parts"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "2026_11_23_0520"
down_revision = "2026_11_23_0500"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_idempotency_keys()
    _create_uploads()
    _create_upload_parts()


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("retry_count", sa.Integer(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    _secure_rows("idempotency_keys")
    op.execute("GRANT SELECT, INSERT, UPDATE ON idempotency_keys TO medtune_api")
    op.execute("GRANT SELECT, DELETE ON idempotency_keys TO medtune_worker")
    op.drop_constraint("uq_jobs_tenant_id_idempotency_key", "jobs")
    op.drop_column("jobs", "request_hash")


def _create_uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("options", JSONB(none_as_null=True), nullable=False),
        sa.Column("status", sa.String(20), server_default="pending", nullable=False),
        sa.Column("dataset_id", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "expires_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now() + interval '1 hour'"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["created_by"], ["api_keys.id"], name=op.f("fk_uploads_created_by")),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_uploads_dataset_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_uploads_tenant_id_id")),
    )
    is_pending = sa.text("status = 'pending'")
    op.create_index("ix_uploads_pending", "uploads", ["expires_at"], postgresql_where=is_pending)
    _secure_rows("uploads")
    op.execute("GRANT SELECT, INSERT, UPDATE (status, dataset_id) ON uploads TO medtune_api")


def _create_upload_parts() -> None:
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("upload_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("store_key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            *(["tenant_id", "upload_id"], ["uploads.tenant_id", "uploads.id"]),
            name=op.f("fk_upload_parts_tenant_id_upload_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload_parts")),
    )
    op.create_index("ix_upload_parts_upload", "upload_parts", ["upload_id"])
    _secure_rows("upload_parts")
    op.execute("GRANT SELECT, INSERT ON upload_parts TO medtune_api")


def _secure_rows(table: str) -> None:
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    mine = "tenant_id = current_setting('medtune.tenant', true)"
    op.execute(f"CREATE POLICY tenant ON {table} TO medtune_api USING ({mine})")
    op.execute(f"CREATE POLICY every_tenant ON {table} TO medtune_worker USING (true)")


def downgrade() -> None:
    op.drop_table("upload_parts")
    op.drop_table("uploads")
    op.add_column("jobs", sa.Column("request_hash", sa.Text(), nullable=True))
    op.create_unique_constraint("uq_jobs_tenant_id_idempotency_key", "jobs", ["tenant_id", "idempotency_key"])
    op.drop_table("idempotency_keys")
