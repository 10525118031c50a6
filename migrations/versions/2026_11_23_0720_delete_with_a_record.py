"""delete jobs and datasets, with a record that stays"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "2026_11_23_0720"
down_revision = "2026_11_23_0650"
branch_labels = None
depends_on = None

# SECURITY DEFINER: the API may delete a job in this way only. What a released adapter was made by stays, and nothing goes
# without a record. Everything about the job goes with it, by the foreign keys.
DELETE_JOB = """
CREATE FUNCTION medtune_delete_job(wanted text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    tenant text := current_setting('medtune.tenant', true);
BEGIN
    DELETE FROM jobs
    WHERE id = wanted AND tenant_id = tenant AND finished_at IS NOT NULL
      AND NOT EXISTS (SELECT FROM adapters WHERE job_id = wanted AND state = 'released')
      AND EXISTS (SELECT FROM deletions WHERE tenant_id = tenant AND subject_id = wanted);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job % cannot be deleted', wanted USING ERRCODE = 'check_violation';
    END IF;
END
$$
"""

GUARD_DELETION = """
CREATE FUNCTION medtune_guard_deletion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.completed_at IS NOT NULL
       OR (NEW.id, NEW.tenant_id, NEW.kind, NEW.subject_id, NEW.requested_by, NEW.requested_at, NEW.record,
           NEW.record_sha256)
          IS DISTINCT FROM
          (OLD.id, OLD.tenant_id, OLD.kind, OLD.subject_id, OLD.requested_by, OLD.requested_at, OLD.record,
           OLD.record_sha256) THEN
        RAISE EXCEPTION 'what deletion % tells of never changes, and nothing of it when it is complete', OLD.id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$
"""


def upgrade() -> None:
    _create_deletions()
    op.execute(DELETE_JOB)
    op.execute("REVOKE ALL ON FUNCTION medtune_delete_job(text) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION medtune_delete_job(text) TO medtune_api")
    op.execute("GRANT DELETE ON uploads, idempotency_keys TO medtune_api")
    op.execute("GRANT SELECT (dataset_id) ON vault_entries TO medtune_api")  # To count them, and no more.
    op.execute("GRANT INSERT (tenant_id, actor, action, object_id, result, data) ON audit_entries TO medtune_worker")
    # The id of the job that was tried again says where a job comes from, also when that is deleted.
    op.drop_constraint("fk_jobs_parent_id", "jobs", type_="foreignkey")


def downgrade() -> None:
    op.execute("UPDATE jobs SET parent_id = NULL WHERE parent_id NOT IN (SELECT id FROM jobs)")
    op.create_foreign_key("fk_jobs_parent_id", "jobs", "jobs", ["parent_id"], ["id"])
    op.execute("REVOKE INSERT (tenant_id, actor, action, object_id, result, data) ON audit_entries FROM medtune_worker")
    op.execute("REVOKE SELECT (dataset_id) ON vault_entries FROM medtune_api")
    op.execute("REVOKE DELETE ON uploads, idempotency_keys FROM medtune_api")
    op.execute("DROP FUNCTION medtune_delete_job(text)")
    op.drop_table("deletions")
    op.execute("DROP FUNCTION medtune_guard_deletion()")


def _create_deletions() -> None:
    op.create_table(
        "deletions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("record", JSONB(none_as_null=True), nullable=False),
        sa.Column("record_sha256", sa.Text(), nullable=False),
        sa.Column("files", JSONB(none_as_null=True), nullable=False),
        sa.Column("work_folders", JSONB(none_as_null=True), nullable=False),
        sa.Column("files_deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('job', 'dataset')", name=op.f("ck_deletions_kind")),
        sa.CheckConstraint("completed_at IS NULL OR files_deleted_at IS NOT NULL", name=op.f("ck_deletions_completed")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deletions")),
        sa.UniqueConstraint("tenant_id", "subject_id", name=op.f("uq_deletions_tenant_id_subject_id")),
    )
    op.create_index("ix_deletions_open", "deletions", ["id"], postgresql_where=sa.text("completed_at IS NULL"))
    op.execute(GUARD_DELETION)
    op.execute("CREATE TRIGGER guard BEFORE UPDATE ON deletions FOR EACH ROW EXECUTE FUNCTION medtune_guard_deletion()")
    op.execute(
        "CREATE TRIGGER keep BEFORE DELETE OR TRUNCATE ON deletions "
        "FOR EACH STATEMENT EXECUTE FUNCTION medtune_refuse_change()"
    )
    op.execute("ALTER TABLE deletions ENABLE ROW LEVEL SECURITY")
    mine = "tenant_id = current_setting('medtune.tenant', true)"
    op.execute(f"CREATE POLICY tenant ON deletions TO medtune_api USING ({mine})")
    op.execute("CREATE POLICY every_tenant ON deletions TO medtune_worker USING (true)")
    op.execute("GRANT SELECT, INSERT ON deletions TO medtune_api")
    columns = "files, work_folders, files_deleted_at, completed_at"
    op.execute(f"GRANT SELECT, UPDATE ({columns}) ON deletions TO medtune_worker")
