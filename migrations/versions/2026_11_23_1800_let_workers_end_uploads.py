"""let workers end uploads that nobody completes"""

from alembic import op

revision = "2026_11_23_1800"
down_revision = "2026_11_23_1500"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("GRANT SELECT, UPDATE (status) ON uploads TO medtune_worker")


def downgrade() -> None:
    op.execute("REVOKE SELECT, UPDATE (status) ON uploads FROM medtune_worker")
