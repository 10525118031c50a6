"""recover jobs: retries by fault, checkpoints in the store, limits and fair turns by key, legal changes only"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2026_11_22_1700"
down_revision = "2026_11_22_1345"
branch_labels = None
depends_on = None

LEGAL_CHANGES = {
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

# A job's turn is how many of its key's jobs come before it, those that run included: who has least runs next. Counted by
# key: with as many jobs as a queue may hold, comparing each with each would take minutes.
CREATE_QUEUE_POSITION = """
CREATE FUNCTION medtune_queue_position(wanted text) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    job record;
    turn bigint;
BEGIN
    SELECT id, created_by, priority INTO job FROM jobs WHERE id = wanted AND status = 'queued';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    turn := (SELECT count(*) FROM jobs WHERE created_by = job.created_by AND lease_owner IS NOT NULL)
          + (SELECT count(*) FROM jobs WHERE created_by = job.created_by AND status = 'queued'
             AND (priority > job.priority OR (priority = job.priority AND id <= job.id)));
    RETURN (
        WITH running AS (
            SELECT created_by, count(*) AS jobs FROM jobs WHERE lease_owner IS NOT NULL GROUP BY created_by
        ), keys AS (
            -- Each key's jobs that come first by priority alone, those of the same priority, and how many of these have
            -- their turn before this job's.
            SELECT waiting.created_by, higher, same, turn - 1 - higher - coalesce(running.jobs, 0) AS earlier
            FROM (
                SELECT created_by, count(*) FILTER (WHERE priority > job.priority) AS higher,
                       count(*) FILTER (WHERE priority = job.priority) AS same
                FROM jobs WHERE status = 'queued' AND priority >= job.priority GROUP BY created_by
            ) AS waiting LEFT JOIN running USING (created_by)
        )
        SELECT sum(higher + least(same, greatest(earlier, 0)) + CASE WHEN earlier BETWEEN 0 AND same - 1 THEN (
            -- The key's job of the same turn: the older one is first.
            SELECT (equal.id <= job.id)::int FROM jobs AS equal
            WHERE equal.created_by = keys.created_by AND equal.status = 'queued' AND equal.priority = job.priority
            ORDER BY equal.id OFFSET earlier LIMIT 1
        ) ELSE 0 END) FROM keys
    );
END
$$
"""

OLD_QUEUE_POSITION = """
CREATE FUNCTION medtune_queue_position(wanted text) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    RETURN (
        SELECT NULLIF(count(ahead.id), 0)
        FROM jobs AS job JOIN jobs AS ahead
          ON ahead.priority > job.priority OR (ahead.priority = job.priority AND ahead.id <= job.id)
        WHERE job.id = wanted AND job.status = 'queued' AND ahead.status = 'queued'
    );
END
$$
"""


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("max_running", sa.Integer(), nullable=True))
    op.add_column("api_keys", sa.Column("max_queued", sa.Integer(), nullable=True))
    op.execute("GRANT SELECT (id, max_running) ON api_keys TO medtune_worker")

    op.drop_column("jobs", "lost_attempts")
    for name in ("infra_restarts", "no_progress_restarts"):
        op.add_column("jobs", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    now = sa.text("now()")
    op.add_column("jobs", sa.Column("queued_at", sa.DateTime(timezone=True), server_default=now, nullable=False))
    op.add_column("jobs", sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_constraint(op.f("ck_jobs_lease"), "jobs")
    op.create_check_constraint(
        op.f("ck_jobs_lease"),
        "jobs",
        "(status IN ('pausing', 'running', 'starting', 'stopping')) = (lease_owner IS NOT NULL) "
        "AND (lease_owner IS NULL) = (lease_expires_at IS NULL) AND (lease_owner IS NULL) = (heartbeat_at IS NULL)",
    )
    op.drop_index("ix_jobs_queue", "jobs")
    queued = sa.text("status = 'queued'")
    order: list[Any] = ["created_by", sa.literal_column("priority DESC"), "id"]
    op.create_index("ix_jobs_queue", "jobs", ["num_gpus", *order], postgresql_where=queued)
    op.create_index("ix_jobs_places", "jobs", order, postgresql_where=queued)
    op.execute(GUARD_JOB.format(cases=_list_cases()))
    op.execute(
        "CREATE TRIGGER guard_job BEFORE UPDATE OF status, attempt, lease_epoch, lease_owner, reason, finished_at "
        "ON jobs FOR EACH ROW EXECUTE FUNCTION medtune_guard_job()"
    )

    op.add_column("attempts", sa.Column("hostname", sa.Text(), server_default="", nullable=False))
    op.alter_column("attempts", "hostname", server_default=None)
    for name in ("resumed_from_step", "last_step"):
        op.add_column("attempts", sa.Column(name, sa.BigInteger(), nullable=True))
    for name in ("log_offset", "events_offset"):
        op.add_column("attempts", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("attempts", sa.Column("fault", sa.Text(), nullable=True))
    is_open = sa.text("ended_at IS NULL")
    op.create_index("uq_attempts_open", "attempts", ["job_id"], unique=True, postgresql_where=is_open)
    op.create_index("ix_attempts_worker", "attempts", ["worker_id"], postgresql_where=is_open)

    # Those of before lie in the run folders of workers, where no other worker finds them.
    op.execute("DELETE FROM checkpoints")
    op.drop_column("checkpoints", "path")
    op.add_column("checkpoints", sa.Column("store_key", sa.Text(), nullable=False))
    op.add_column("checkpoints", sa.Column("sha256", sa.Text(), nullable=False))
    op.create_unique_constraint(
        op.f("uq_checkpoints_job_id_attempt_step"), "checkpoints", ["job_id", "attempt", "step"]
    )
    op.execute("GRANT DELETE ON checkpoints TO medtune_worker")

    op.add_column("workers", sa.Column("problem", sa.Text(), nullable=True))
    _replace_queue_position(CREATE_QUEUE_POSITION)


def downgrade() -> None:
    _replace_queue_position(OLD_QUEUE_POSITION)
    op.drop_column("workers", "problem")
    op.execute("REVOKE DELETE ON checkpoints FROM medtune_worker")
    op.execute("DELETE FROM checkpoints")
    op.drop_constraint(op.f("uq_checkpoints_job_id_attempt_step"), "checkpoints")
    op.drop_column("checkpoints", "sha256")
    op.drop_column("checkpoints", "store_key")
    op.add_column("checkpoints", sa.Column("path", sa.Text(), nullable=False))
    op.drop_index("ix_attempts_worker", "attempts")
    op.drop_index("uq_attempts_open", "attempts")
    for name in ("fault", "events_offset", "log_offset", "last_step", "resumed_from_step", "hostname"):
        op.drop_column("attempts", name)
    op.execute("DROP TRIGGER guard_job ON jobs")
    op.execute("DROP FUNCTION medtune_guard_job()")
    op.drop_index("ix_jobs_places", "jobs")
    op.drop_index("ix_jobs_queue", "jobs")
    order: list[Any] = [sa.literal_column("priority DESC"), "id"]
    op.create_index("ix_jobs_queue", "jobs", order, postgresql_where=sa.text("status = 'queued'"))
    op.drop_constraint(op.f("ck_jobs_lease"), "jobs")
    op.create_check_constraint(
        op.f("ck_jobs_lease"),
        "jobs",
        "(status IN ('running', 'starting', 'stopping')) = (lease_owner IS NOT NULL) "
        "AND (lease_owner IS NULL) = (lease_expires_at IS NULL) AND (lease_owner IS NULL) = (heartbeat_at IS NULL)",
    )
    for name in ("deadline_at", "queued_at", "no_progress_restarts", "infra_restarts"):
        op.drop_column("jobs", name)
    op.add_column("jobs", sa.Column("lost_attempts", sa.Integer(), server_default="0", nullable=False))
    op.execute("REVOKE SELECT (id, max_running) ON api_keys FROM medtune_worker")
    op.drop_column("api_keys", "max_queued")
    op.drop_column("api_keys", "max_running")


def _list_cases() -> str:
    def quote(names: tuple[str, ...]) -> str:
        return ", ".join(f"'{name}'" for name in names)

    return " ".join(f"WHEN '{old}' THEN ARRAY[{quote(new)}]" for old, new in LEGAL_CHANGES.items())


def _replace_queue_position(statement: str) -> None:
    op.execute("DROP FUNCTION medtune_queue_position(text)")
    op.execute(statement)
    op.execute("REVOKE ALL ON FUNCTION medtune_queue_position(text) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION medtune_queue_position(text) TO medtune_api")
