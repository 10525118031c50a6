"""say what a worker has: its GPUs' name and memory, the host's memory, the free disk"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_22_1345"
down_revision = "2026_11_22_1034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("gpu_name", sa.Text(), nullable=True))
    for name in ("gpu_memory_bytes", "host_memory_bytes", "disk_free_bytes"):
        op.add_column("workers", sa.Column(name, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for name in ("disk_free_bytes", "host_memory_bytes", "gpu_memory_bytes", "gpu_name"):
        op.drop_column("workers", name)
