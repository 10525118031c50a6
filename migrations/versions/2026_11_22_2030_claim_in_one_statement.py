"""claim in one statement: all other claims wait meanwhile, and no network is to lie in between"""

from alembic import op

revision = "2026_11_22_2030"
down_revision = "2026_11_22_1700"
branch_labels = None
depends_on = None

# The job whose turn it is on a host: the highest priority first; then the key with the fewest running jobs; then the
# oldest. It walks from one (GPUs, key) to the next by the index, however many jobs each has, and takes the first of each
# on the way. Only where that one waits after a failure, the next that does not is looked for.
CREATE_NEXT_JOB = """
CREATE FUNCTION medtune_next_job(host_gpus int, free_gpus int, patience_seconds float8)
RETURNS TABLE (id text, fits boolean) LANGUAGE sql STABLE AS $$
WITH RECURSIVE classes AS (
    (SELECT num_gpus, created_by, priority, id, queued_at, not_before FROM jobs
     WHERE status = 'queued' AND num_gpus <= host_gpus
     ORDER BY num_gpus, created_by, priority DESC, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM classes CROSS JOIN LATERAL (
        SELECT num_gpus, created_by, priority, id, queued_at, not_before FROM jobs
        WHERE status = 'queued' AND num_gpus <= host_gpus
          AND (num_gpus, created_by) > (classes.num_gpus, classes.created_by)
        ORDER BY num_gpus, created_by, priority DESC, id LIMIT 1
    ) AS next
), running AS MATERIALIZED (
    SELECT created_by, count(*) AS jobs FROM jobs WHERE lease_owner IS NOT NULL GROUP BY created_by
)
SELECT first.id, first.num_gpus <= free_gpus
FROM classes JOIN api_keys ON api_keys.id = classes.created_by LEFT JOIN running USING (created_by)
CROSS JOIN LATERAL (
    SELECT classes.id, classes.num_gpus, classes.priority, classes.queued_at WHERE classes.not_before <= now()
    UNION ALL
    (SELECT id, num_gpus, priority, queued_at FROM jobs
     WHERE classes.not_before > now() AND not_before <= now()
       AND status = 'queued' AND num_gpus = classes.num_gpus AND created_by = classes.created_by
     ORDER BY priority DESC, id LIMIT 1)
) AS first
WHERE coalesce(running.jobs, 0) < coalesce(api_keys.max_running, 2147483647)
  AND (first.num_gpus <= free_gpus OR first.queued_at < now() - make_interval(secs => patience_seconds))
ORDER BY first.priority DESC, coalesce(running.jobs, 0), first.id
LIMIT 1
$$
"""

# Fair turns and limits need one view of who runs what: the second statement sees what the claims before it did, because
# each statement of a volatile function looks anew. The time limit counts what earlier attempts spent. A plan for each call
# would take as long as its execution.
CREATE_CLAIM_JOB = """
CREATE FUNCTION medtune_claim_job(
    owner text, host text, lease_seconds float8, host_gpus int, free_gpus int, patience_seconds float8, event_id text
) RETURNS SETOF jobs LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7265676);
    RETURN QUERY WITH taken AS (
        UPDATE jobs SET
            status = 'starting', attempt = attempt + 1, reason = NULL, started_at = coalesce(started_at, now()),
            lease_owner = owner, lease_epoch = lease_epoch + 1, heartbeat_at = clock_timestamp(),
            lease_expires_at = clock_timestamp() + make_interval(secs => lease_seconds),
            deadline_at = clock_timestamp() + make_interval(secs => (spec -> 'resources' ->> 'time_limit')::float8)
                - (SELECT coalesce(sum(a.ended_at - a.started_at), interval '0') FROM attempts AS a
                   WHERE a.job_id = jobs.id)
        FROM medtune_next_job(host_gpus, free_gpus, patience_seconds) AS next
        WHERE jobs.id = next.id AND next.fits AND status = 'queued'
        RETURNING jobs.*
    ), opened AS (
        INSERT INTO attempts (job_id, number, tenant_id, lease_epoch, worker_id, hostname)
        SELECT id, attempt, tenant_id, lease_epoch, owner, host FROM taken
    ), told AS (
        INSERT INTO events (id, tenant_id, job_id, attempt, type, message, data)
        SELECT event_id, tenant_id, id, attempt, 'status', 'attempt ' || attempt || ' starts',
               jsonb_build_object('from', 'queued', 'to', 'starting', 'worker', owner)
        FROM taken
    )
    SELECT * FROM taken;
END
$$
"""

NEXT_JOB = "medtune_next_job(int, int, float8)"
CLAIM_JOB = "medtune_claim_job(text, text, float8, int, int, float8, text)"


def upgrade() -> None:
    op.execute(CREATE_NEXT_JOB)
    op.execute(CREATE_CLAIM_JOB)
    for function in (NEXT_JOB, CLAIM_JOB):
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION {function} TO medtune_worker")


def downgrade() -> None:
    op.execute(f"DROP FUNCTION {CLAIM_JOB}")
    op.execute(f"DROP FUNCTION {NEXT_JOB}")
