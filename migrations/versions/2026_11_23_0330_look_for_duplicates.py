"""look for duplicates and for questions of benchmarks in datasets, by a policy"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_23_0330"
down_revision = "2026_11_23_0300"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("overlap_policy", sa.String(20), server_default="report", nullable=False))


def downgrade() -> None:
    op.drop_column("datasets", "overlap_policy")
