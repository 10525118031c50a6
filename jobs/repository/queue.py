"""The queue: who is next, and what the table waits for."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, func, select, text
from sqlalchemy.orm import Session

from jobs.models import Job
from jobs.status import JobStatus

_CLAIMS = 7265676  # any number that nothing else of this database locks

_LOCK_CLAIMS = select(func.pg_advisory_xact_lock(_CLAIMS))

# Walks from one (GPUs, key) to the next by the index, however many jobs each has, and takes the first of each on the
# way. Only where that one waits after a failure, the next that does not is looked for.
_NEXT = text("""
WITH RECURSIVE classes AS (
    (SELECT num_gpus, created_by, priority, id, queued_at, not_before FROM jobs
     WHERE status = 'queued' AND num_gpus <= :host_gpus
     ORDER BY num_gpus, created_by, priority DESC, id LIMIT 1)
    UNION ALL
    SELECT next.* FROM classes CROSS JOIN LATERAL (
        SELECT num_gpus, created_by, priority, id, queued_at, not_before FROM jobs
        WHERE status = 'queued' AND num_gpus <= :host_gpus
          AND (num_gpus, created_by) > (classes.num_gpus, classes.created_by)
        ORDER BY num_gpus, created_by, priority DESC, id LIMIT 1
    ) AS next
), running AS (
    SELECT created_by, count(*) AS jobs FROM jobs WHERE lease_owner IS NOT NULL GROUP BY created_by
)
SELECT first.id, first.num_gpus <= :free_gpus AS fits
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
  AND (first.num_gpus <= :free_gpus OR first.queued_at < now() - make_interval(secs => :patience))
ORDER BY first.priority DESC, coalesce(running.jobs, 0), first.id
LIMIT 1
""")


def lock_claims(session: Session) -> None:
    """Until the transaction ends nobody else claims: fair turns and limits need one view of who runs what."""
    session.connection().execute(_LOCK_CLAIMS)


def find_next_job(session: Session, *, host_gpus: int, free_gpus: int, patience_seconds: float) -> Row[Any] | None:
    """`id` of the job whose turn it is on a host, and whether it `fits` on the GPUs that are free there now.

    The highest priority first; then the key with the fewest running jobs; then the oldest. Keys at their limit wait. A
    job that needs more GPUs than are free is passed by, until it has waited for so long that the GPUs are kept for it.
    """
    names = {"host_gpus": host_gpus, "free_gpus": free_gpus, "patience": patience_seconds}
    return session.connection().execute(_NEXT, names).first()


def count_queued_jobs(session: Session, at_most: int) -> int:
    """Those that a worker could take now; there may be more than `at_most`."""
    return session.scalar(select(func.count()).select_from(_queued_jobs().limit(at_most).subquery())) or 0


def count_waiting_jobs_of_key(session: Session, key_id: str) -> int:
    """Those that wait for their dataset or a worker. Whoever asks for the same key meanwhile waits."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"queued/{key_id}", 0))))
    waiting = Job.status.in_([JobStatus.VALIDATING, JobStatus.QUEUED])
    return session.scalar(select(func.count()).select_from(Job).where(Job.created_by == key_id, waiting)) or 0


def count_leases(session: Session) -> tuple[int, int]:
    """How many jobs have an owner, and of how many the lease is over."""
    is_over = Job.lease_expires_at < func.now()
    counts = select(func.count(), func.count().filter(is_over)).where(Job.lease_owner.is_not(None))
    held, over = session.execute(counts).one()
    return held, over


def lock_jobs_with_expired_leases(session: Session) -> Sequence[Job]:
    expired = select(Job).where(Job.lease_owner.is_not(None), Job.lease_expires_at < func.now())
    return session.scalars(expired.with_for_update(skip_locked=True)).all()


def list_jobs_of_owner(session: Session, owner: str) -> Sequence[Job]:
    return session.scalars(select(Job).where(Job.lease_owner == owner)).all()


def get_database_uptime(session: Session) -> float:
    """Seconds since the server started."""
    uptime = func.extract("epoch", func.clock_timestamp() - func.pg_postmaster_start_time())
    return float(session.scalar(select(uptime)) or 0)


def _queued_jobs() -> Select[Job]:
    return select(Job).where(
        Job.status == JobStatus.QUEUED, Job.not_before <= func.now(), Job.cancel_requested_at.is_(None)
    )
