"""replace identifiers of patients in datasets; what the placeholders stand for; which rows went into which adapter"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "2026_11_23_0300"
down_revision = "2026_11_23_0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("phi_strategy", sa.String(30), nullable=True))
    op.add_column("datasets", sa.Column("patient_key", sa.Text(), nullable=True))
    op.add_column("datasets", sa.Column("has_leftovers", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_check_constraint(
        op.f("ck_datasets_strategy"), "datasets", "(phi_policy = 'replace') = (phi_strategy IS NOT NULL)"
    )
    op.create_index("ix_datasets_leftovers", "datasets", ["id"], postgresql_where=sa.text("has_leftovers"))
    op.create_table(
        "vault_entries",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("blind_index", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("key_version", sa.BigInteger(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("ciphertext", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "dataset_id"],
            ["datasets.tenant_id", "datasets.id"],
            name=op.f("fk_vault_entries_tenant_id_dataset_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "scope", "label", "blind_index", "token", name=op.f("pk_vault_entries")),
    )
    op.create_table(
        "row_shards",
        sa.Column("dataset_id", sa.Text(), nullable=False),
        sa.Column("is_uploaded", sa.Boolean(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("key_version", sa.BigInteger(), nullable=True),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "dataset_id"],
            ["datasets.tenant_id", "datasets.id"],
            name=op.f("fk_row_shards_tenant_id_dataset_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "is_uploaded", "shard", name=op.f("pk_row_shards")),
    )
    op.create_index("ix_row_shards_shard", "row_shards", ["tenant_id", "shard"])
    op.execute("ALTER TABLE row_shards ALTER COLUMN hashes SET STORAGE EXTERNAL")  # They cannot be compressed.
    op.add_column("datasets", sa.Column("rows_digest", sa.Text(), nullable=True))
    op.add_column("adapters", sa.Column("provenance", JSONB(none_as_null=True), nullable=True))
    mine = "tenant_id = current_setting('medtune.tenant', true)"
    for table in ("vault_entries", "row_shards"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenant ON {table} TO medtune_api USING ({mine})")
        op.execute(f"CREATE POLICY every_tenant ON {table} TO medtune_worker USING (true)")
        op.execute(f"GRANT SELECT, INSERT ON {table} TO medtune_worker")
    op.execute("GRANT SELECT ON row_shards TO medtune_api")  # It has no use for the vault.


def downgrade() -> None:
    op.drop_column("adapters", "provenance")
    op.drop_column("datasets", "rows_digest")
    op.drop_table("row_shards")
    op.drop_table("vault_entries")
    op.drop_index("ix_datasets_leftovers", "datasets")
    op.drop_constraint(op.f("ck_datasets_strategy"), "datasets")
    for column in ("has_leftovers", "patient_key", "phi_strategy"):
        op.drop_column("datasets", column)
