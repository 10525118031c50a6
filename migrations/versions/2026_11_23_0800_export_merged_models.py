"""export merged models"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "2026_11_23_0800"
down_revision = "2026_11_23_0740"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "exports",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("status", sa.String(20), server_default="merging", nullable=False),
        sa.Column("reason", JSONB(none_as_null=True), nullable=True),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("store_key", sa.Text(), nullable=True),
        sa.Column("num_bytes", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(status = 'ready') = (store_key IS NOT NULL)", name=op.f("ck_exports_stored")),
        sa.CheckConstraint("(status = 'failed') = (reason IS NOT NULL)", name=op.f("ck_exports_reason")),
        sa.CheckConstraint("status = 'merging' OR lease_owner IS NULL", name=op.f("ck_exports_lease")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_exports_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_exports")),
    )
    op.create_index("ix_exports_waiting", "exports", ["created_at"], postgresql_where=sa.text("status = 'merging'"))
    mine = "tenant_id = current_setting('medtune.tenant', true)"
    op.execute("ALTER TABLE exports ENABLE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON exports TO medtune_api USING ({mine})")
    op.execute("CREATE POLICY every_tenant ON exports TO medtune_worker USING (true)")
    again = "status, reason, tries, created_by, created_at, finished_at"
    op.execute(f"GRANT SELECT, INSERT, UPDATE ({again}) ON exports TO medtune_api")
    op.execute("GRANT SELECT, UPDATE ON exports TO medtune_worker")


def downgrade() -> None:
    op.drop_table("exports")
