"""limit what keys may: scopes, an end, two values during a rotation, and how much they store"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "2026_11_23_0500"
down_revision = "2026_11_23_0400"
branch_labels = None
depends_on = None

# What every key could do until now, but for what an admin key may.
OLD_SCOPES = (
    "{jobs:read,jobs:write,datasets:read,datasets:write,adapters:read,adapters:release,reviews:decide,audit:read}"
)
CHANGEABLE = "key_hash, previous_key_hash, previous_valid_until, last_used_at"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("scopes", ARRAY(sa.Text()), nullable=True))
    op.execute(f"UPDATE api_keys SET scopes = '{OLD_SCOPES}'")
    op.alter_column("api_keys", "scopes", nullable=False)
    op.add_column("api_keys", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("previous_key_hash", sa.LargeBinary(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_valid_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("max_storage_bytes", sa.BigInteger(), nullable=True))
    op.create_unique_constraint(op.f("uq_api_keys_previous_key_hash"), "api_keys", ["previous_key_hash"])
    op.create_check_constraint(
        op.f("ck_api_keys_rotation"), "api_keys", "(previous_key_hash IS NULL) = (previous_valid_until IS NULL)"
    )
    op.create_index("ix_api_keys_tenant", "api_keys", ["tenant_id", "id"])
    op.create_index("ix_datasets_created_by", "datasets", ["created_by"])
    op.execute(f"GRANT UPDATE ({CHANGEABLE}) ON api_keys TO medtune_api")


def downgrade() -> None:
    op.execute("REVOKE UPDATE (key_hash) ON api_keys FROM medtune_api")
    op.drop_index("ix_datasets_created_by", "datasets")
    op.drop_index("ix_api_keys_tenant", "api_keys")
    op.drop_constraint(op.f("ck_api_keys_rotation"), "api_keys")
    for name in (
        "max_storage_bytes",
        "previous_valid_until",
        "previous_key_hash",
        "last_used_at",
        "expires_at",
        "scopes",
    ):
        op.drop_column("api_keys", name)
