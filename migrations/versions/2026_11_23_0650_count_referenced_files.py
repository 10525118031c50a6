"""let workers see how much a key may store"""

from alembic import op

revision = "2026_11_23_0650"
down_revision = "2026_11_23_0640"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("GRANT SELECT (max_storage_bytes) ON api_keys TO medtune_worker")


def downgrade() -> None:
    op.execute("REVOKE SELECT (max_storage_bytes) ON api_keys FROM medtune_worker")
