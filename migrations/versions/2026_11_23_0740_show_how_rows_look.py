"""show how rows look"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_23_0740"
down_revision = "2026_11_23_0720"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_rows",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("report", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_rows_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_rows")),
    )
    mine = "tenant_id = current_setting('medtune.tenant', true)"
    op.execute("ALTER TABLE job_rows ENABLE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON job_rows TO medtune_api USING ({mine})")
    op.execute("CREATE POLICY every_tenant ON job_rows TO medtune_worker USING (true)")
    op.execute("GRANT SELECT ON job_rows TO medtune_api")
    op.execute("GRANT SELECT, INSERT, UPDATE ON job_rows TO medtune_worker")


def downgrade() -> None:
    op.drop_table("job_rows")
