"""look for identifiers of patients in datasets, by a policy; who attests for what was found"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "2026_11_22_2355"
down_revision = "2026_11_22_2030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("phi_policy", sa.String(20), server_default="report", nullable=False))
    op.add_column("datasets", sa.Column("attestation", JSONB(none_as_null=True), nullable=True))
    op.create_check_constraint(
        op.f("ck_datasets_attested"), "datasets", "phi_policy <> 'off' OR attestation IS NOT NULL"
    )
    op.execute("GRANT UPDATE (attestation) ON datasets TO medtune_api")


def downgrade() -> None:
    op.execute("REVOKE UPDATE (attestation) ON datasets FROM medtune_api")
    op.drop_constraint(op.f("ck_datasets_attested"), "datasets")
    op.drop_column("datasets", "attestation")
    op.drop_column("datasets", "phi_policy")
