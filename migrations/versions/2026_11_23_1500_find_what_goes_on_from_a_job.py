"""find what goes on from a job"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_23_1500"
down_revision = "2026_11_23_1430"
branch_labels = None
depends_on = None


def upgrade() -> None:
    initial = sa.Computed("spec -> 'init_from' ->> 'job'", persisted=True)
    op.add_column("jobs", sa.Column("initial_job_id", sa.Text(), initial, nullable=True))
    is_any = sa.text("initial_job_id IS NOT NULL")
    op.create_index("ix_jobs_initial_job", "jobs", ["initial_job_id"], postgresql_where=is_any)


def downgrade() -> None:
    op.drop_index("ix_jobs_initial_job", table_name="jobs")
    op.drop_column("jobs", "initial_job_id")
