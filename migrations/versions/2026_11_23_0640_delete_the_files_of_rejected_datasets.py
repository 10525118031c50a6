"""delete the files of datasets that were rejected"""

from alembic import op

revision = "2026_11_23_0640"
down_revision = "2026_11_23_0600"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The service's workers find these and delete their files, as those of datasets that are rejected from now on."""
    op.execute("UPDATE datasets SET has_leftovers = true WHERE status = 'rejected'")


def downgrade() -> None:
    """What was deleted stays so."""
