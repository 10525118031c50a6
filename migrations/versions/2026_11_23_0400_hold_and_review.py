"""hold jobs for a decision, review what the safety checks found, approve and release adapters"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "2026_11_23_0400"
down_revision = "2026_11_23_0330"
branch_labels = None
depends_on = None

LEGAL_CHANGES = {
    "validating": ("queued", "paused", "cancelled", "failed"),
    "queued": ("starting", "paused", "cancelled", "failed"),
    "starting": ("running", "stopping", "pausing", "queued", "failed", "cancelled"),
    "running": ("stopping", "pausing", "held", "queued", "succeeded", "failed", "cancelled"),
    "pausing": ("stopping", "paused", "held", "succeeded", "failed", "cancelled"),
    "paused": ("validating", "queued", "failed", "cancelled"),
    "stopping": ("queued", "paused", "held", "succeeded", "failed", "cancelled"),
    "held": ("queued", "failed", "cancelled"),
}
OLD_LEGAL_CHANGES = {
    "validating": ("queued", "paused", "cancelled", "failed"),
    "queued": ("starting", "paused", "cancelled", "failed"),
    "starting": ("running", "stopping", "pausing", "queued", "failed", "cancelled"),
    "running": ("stopping", "pausing", "queued", "succeeded", "failed", "cancelled"),
    "pausing": ("stopping", "paused", "succeeded", "failed", "cancelled"),
    "paused": ("validating", "queued", "failed", "cancelled"),
    "stopping": ("queued", "paused", "succeeded", "failed", "cancelled"),
}

GUARD_JOB = """
CREATE OR REPLACE FUNCTION medtune_guard_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status <> OLD.status AND NEW.status <> ALL (CASE OLD.status {cases} ELSE ARRAY[]::text[] END) THEN
        RAISE EXCEPTION 'job % cannot go from % to %', OLD.id, OLD.status, NEW.status USING ERRCODE = 'check_violation';
    END IF;
    IF OLD.finished_at IS NOT NULL
       AND (NEW.attempt, NEW.lease_epoch, NEW.reason, NEW.finished_at)
           IS DISTINCT FROM (OLD.attempt, OLD.lease_epoch, OLD.reason, OLD.finished_at) THEN
        RAISE EXCEPTION 'job % is final', OLD.id USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.attempt < OLD.attempt OR NEW.lease_epoch < OLD.lease_epoch
       OR (NEW.lease_owner IS DISTINCT FROM OLD.lease_owner AND NEW.lease_owner IS NOT NULL
           AND (NEW.lease_epoch = OLD.lease_epoch OR OLD.lease_owner IS NOT NULL)) THEN
        RAISE EXCEPTION 'job % takes a new owner only after the old one, with a higher epoch', OLD.id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$
"""

GUARD_ADAPTER = """
CREATE FUNCTION medtune_guard_adapter() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.job_id, NEW.tenant_id, NEW.store_key, NEW.num_bytes, NEW.sha256)
       IS DISTINCT FROM (OLD.job_id, OLD.tenant_id, OLD.store_key, OLD.num_bytes, OLD.sha256) THEN
        RAISE EXCEPTION 'the bytes of adapter % never change', OLD.job_id USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.state = OLD.state THEN
        RETURN NEW;
    END IF;
    IF NEW.state <> ALL (CASE OLD.state
           WHEN 'candidate' THEN ARRAY['approved', 'rejected']
           WHEN 'approved' THEN ARRAY['released', 'rejected']
           WHEN 'released' THEN ARRAY['rejected']
           ELSE ARRAY[]::text[] END) THEN
        RAISE EXCEPTION 'adapter % cannot go from % to %', OLD.job_id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.state <> 'rejected' AND EXISTS (
        SELECT FROM reviews WHERE job_id = NEW.job_id AND state IN ('open', 'awaiting_second', 'rejected')) THEN
        RAISE EXCEPTION 'adapter % has a review that nobody approved', OLD.job_id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$
"""

GUARD_REVIEW = """
CREATE FUNCTION medtune_guard_review() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.closed_at IS NOT NULL
       OR (NEW.id, NEW.tenant_id, NEW.job_id, NEW.cause, NEW.attempt, NEW.step, NEW.findings, NEW.opened_at)
          IS DISTINCT FROM
          (OLD.id, OLD.tenant_id, OLD.job_id, OLD.cause, OLD.attempt, OLD.step, OLD.findings, OLD.opened_at) THEN
        RAISE EXCEPTION 'what review % is about never changes, and nothing of it when it is closed', OLD.id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$
"""


def upgrade() -> None:
    op.execute(GUARD_JOB.format(cases=_list_cases(LEGAL_CHANGES)))
    _create_safety_rounds()
    _create_reviews()
    now = sa.text("now()")
    op.add_column("adapters", sa.Column("name", sa.Text(), nullable=True))
    op.add_column("adapters", sa.Column("model", sa.Text(), nullable=True))
    op.execute("UPDATE adapters SET name = jobs.name, model = jobs.model FROM jobs WHERE jobs.id = adapters.job_id")
    op.alter_column("adapters", "model", nullable=False)
    op.add_column("adapters", sa.Column("decisions", JSONB(none_as_null=True), server_default="[]", nullable=False))
    op.add_column("adapters", sa.Column("state_at", sa.DateTime(timezone=True), server_default=now, nullable=False))
    op.execute(GUARD_ADAPTER)
    op.execute(
        "CREATE TRIGGER guard_adapter BEFORE UPDATE ON adapters FOR EACH ROW EXECUTE FUNCTION medtune_guard_adapter()"
    )
    op.execute("GRANT UPDATE (state, decisions, state_at) ON adapters TO medtune_api")
    # What was released is for everybody who may use this service.
    op.execute("CREATE POLICY released ON adapters FOR SELECT TO medtune_api USING (state = 'released')")


def downgrade() -> None:
    op.execute("DROP POLICY released ON adapters")
    op.execute("REVOKE UPDATE (state, decisions, state_at) ON adapters FROM medtune_api")
    op.execute("DROP TRIGGER guard_adapter ON adapters")
    op.execute("DROP FUNCTION medtune_guard_adapter()")
    for name in ("state_at", "decisions", "model", "name"):
        op.drop_column("adapters", name)
    op.drop_table("reviews")
    op.execute("DROP FUNCTION medtune_guard_review()")
    op.drop_table("safety_rounds")
    op.execute("UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE status = 'held'")
    op.execute(GUARD_JOB.format(cases=_list_cases(OLD_LEGAL_CHANGES)))


def _create_safety_rounds() -> None:
    op.create_table(
        "safety_rounds",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("is_last", sa.Boolean(), nullable=False),
        sa.Column("ok", sa.Boolean(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("summary", JSONB(none_as_null=True), nullable=False),
        sa.Column("num_findings", sa.Integer(), nullable=False),
        sa.Column("findings", JSONB(none_as_null=True), nullable=False),
        sa.Column("open_findings", JSONB(none_as_null=True), nullable=False),
        sa.Column("escalation", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_safety_rounds_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_safety_rounds")),
        sa.UniqueConstraint(
            *("job_id", "attempt", "step", "is_last"), name=op.f("uq_safety_rounds_job_id_attempt_step_is_last")
        ),
    )
    _secure_rows("safety_rounds")
    op.execute("GRANT SELECT ON safety_rounds TO medtune_api")
    op.execute("GRANT SELECT, INSERT ON safety_rounds TO medtune_worker")


def _create_reviews() -> None:
    op.create_table(
        "reviews",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("cause", sa.String(20), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("findings", JSONB(none_as_null=True), nullable=False),
        sa.Column("state", sa.String(20), server_default="open", nullable=False),
        sa.Column("decisions", JSONB(none_as_null=True), server_default="[]", nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state IN ('open', 'awaiting_second')) = (closed_at IS NULL)", name=op.f("ck_reviews_closed")
        ),
        sa.CheckConstraint(
            "state <> 'approved' OR (jsonb_array_length(decisions) = 2 "
            "AND decisions -> 0 ->> 'key_id' <> decisions -> 1 ->> 'key_id')",
            name=op.f("ck_reviews_two_persons"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_reviews_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reviews")),
    )
    op.create_index("ix_reviews_job", "reviews", ["job_id"])
    is_open = sa.text("closed_at IS NULL")
    op.create_index("uq_reviews_open", "reviews", ["job_id"], unique=True, postgresql_where=is_open)
    op.execute(GUARD_REVIEW)
    op.execute(
        "CREATE TRIGGER guard_review BEFORE UPDATE ON reviews FOR EACH ROW EXECUTE FUNCTION medtune_guard_review()"
    )
    _secure_rows("reviews")
    op.execute("GRANT SELECT, INSERT, UPDATE (state, decisions, closed_at) ON reviews TO medtune_api")
    op.execute("GRANT SELECT, INSERT, UPDATE (state, closed_at) ON reviews TO medtune_worker")


def _secure_rows(table: str) -> None:
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    mine = "tenant_id = current_setting('medtune.tenant', true)"
    op.execute(f"CREATE POLICY tenant ON {table} TO medtune_api USING ({mine})")
    op.execute(f"CREATE POLICY every_tenant ON {table} TO medtune_worker USING (true)")


def _list_cases(changes: dict[str, tuple[str, ...]]) -> str:
    def quote(names: tuple[str, ...]) -> str:
        return ", ".join(f"'{name}'" for name in names)

    return " ".join(f"WHEN '{old}' THEN ARRAY[{quote(new)}]" for old, new in changes.items())
