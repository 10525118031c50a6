"""say why a check waits"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_23_1430"
down_revision = "2026_11_23_0800"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("reason", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True)
    op.add_column("datasets", column)


def downgrade() -> None:
    op.drop_column("datasets", "reason")
