"""datasets whose bytes a worker fetches from where a reference says"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_23_0600"
down_revision = "2026_11_23_0540"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("uri", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("datasets", "uri")
