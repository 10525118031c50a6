"""record who did what, in a chain of hashes that nobody may change"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "2026_11_23_0015"
down_revision = "2026_11_22_2355"
branch_labels = None
depends_on = None

# SECURITY DEFINER: whoever may add an entry may not touch the heads. The head's lock is held until the commit, so that
# the numbers of a tenant have no gap and their order is the commits'.
CHAIN = """
CREATE FUNCTION medtune_chain_audit_entry() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    head record;
BEGIN
    INSERT INTO audit_heads (tenant_id, seq, hash) VALUES (NEW.tenant_id, 0, '') ON CONFLICT DO NOTHING;
    SELECT seq, hash INTO STRICT head FROM audit_heads WHERE tenant_id = NEW.tenant_id FOR UPDATE;
    NEW.seq := head.seq + 1;
    NEW.at := clock_timestamp();
    NEW.previous_hash := head.hash;
    NEW.record := jsonb_build_object(
        'tenant_id', NEW.tenant_id, 'seq', NEW.seq,
        'at', to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'actor', NEW.actor, 'action', NEW.action, 'object_id', NEW.object_id, 'result', NEW.result, 'data', NEW.data
    )::text;
    NEW.hash := sha256(head.hash || convert_to(NEW.record, 'UTF8'));
    UPDATE audit_heads SET seq = NEW.seq, hash = NEW.hash WHERE tenant_id = NEW.tenant_id;
    RETURN NEW;
END
$$
"""

REFUSE = """
CREATE FUNCTION medtune_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'entries of % are never changed or deleted', TG_TABLE_NAME USING ERRCODE = 'check_violation';
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("data", JSONB(none_as_null=True), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "seq", name=op.f("pk_audit_entries")),
    )
    op.create_index("ix_audit_entries_object", "audit_entries", ["tenant_id", "object_id", "action", "actor", "at"])
    op.create_table(
        "audit_heads",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_audit_heads")),
    )
    op.execute(CHAIN)
    op.execute(REFUSE)
    op.execute(
        "CREATE TRIGGER chain BEFORE INSERT ON audit_entries FOR EACH ROW EXECUTE FUNCTION medtune_chain_audit_entry()"
    )
    op.execute(
        "CREATE TRIGGER keep BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION medtune_refuse_change()"
    )
    mine = "tenant_id = current_setting('medtune.tenant', true)"
    for table in ("audit_entries", "audit_heads"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenant ON {table} TO medtune_api USING ({mine})")
        op.execute(f"CREATE POLICY every_tenant ON {table} TO medtune_worker USING (true)")
        op.execute(f"GRANT SELECT ON {table} TO medtune_api, medtune_worker")
    op.execute("GRANT INSERT (tenant_id, actor, action, object_id, result, data) ON audit_entries TO medtune_api")


def downgrade() -> None:
    op.drop_table("audit_entries")
    op.drop_table("audit_heads")
    op.execute("DROP FUNCTION medtune_chain_audit_entry()")
    op.execute("DROP FUNCTION medtune_refuse_change()")
