"""How a worker gets a job."""

from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from jobs import repository
from jobs.ids import new_id
from jobs.lifecycle.changes import Lease
from jobs.models import Job


@dataclass(frozen=True)
class Claimant:
    """Who asks for a job, and what it has."""

    owner: str
    hostname: str
    lease_seconds: float
    host_gpus: int = 0
    """GPUs of the host that this worker may use."""
    free_gpus: int = 0
    """Those of them that nothing uses now."""
    patience_seconds: float = 600
    """A job that waited for longer keeps GPUs free for itself."""


def claim_job(session: Session, claimant: Claimant) -> tuple[Job, Lease] | None:
    """The job whose turn it is, if it fits; whoever asked, and however often, each job has one owner."""
    repository.lock_claims(session)
    found = repository.find_next_job(
        session,
        host_gpus=claimant.host_gpus,
        free_gpus=claimant.free_gpus,
        patience_seconds=claimant.patience_seconds,
    )
    if found is None or not found.fits:
        return None
    values = {
        "job": found.id,
        "owner": claimant.owner,
        "hostname": claimant.hostname,
        "seconds": claimant.lease_seconds,
        "event": new_id("evt"),
    }
    job = session.scalar(select(Job).from_statement(_TAKE), values)
    if job is None:  # Cancelled or paused in this moment.
        return None
    return job, Lease(job.id, claimant.owner, job.lease_epoch, claimant.lease_seconds)


# One statement, because all other claims wait meanwhile. The time limit counts what earlier attempts spent.
_TAKE = text("""
WITH taken AS (
    UPDATE jobs SET
        status = 'starting', attempt = attempt + 1, reason = NULL, started_at = coalesce(started_at, now()),
        lease_owner = :owner, lease_epoch = lease_epoch + 1, heartbeat_at = now(),
        lease_expires_at = now() + make_interval(secs => :seconds),
        deadline_at = now() + make_interval(secs => (spec -> 'resources' ->> 'time_limit')::float8)
                      - (SELECT coalesce(sum(ended_at - started_at), interval '0') FROM attempts WHERE job_id = jobs.id)
    WHERE id = :job AND status = 'queued'
    RETURNING *
), opened AS (
    INSERT INTO attempts (job_id, number, tenant_id, lease_epoch, worker_id, hostname)
    SELECT id, attempt, tenant_id, lease_epoch, :owner, :hostname FROM taken
), told AS (
    INSERT INTO events (id, tenant_id, job_id, attempt, type, message, data)
    SELECT :event, tenant_id, id, attempt, 'status', 'attempt ' || attempt || ' starts',
           jsonb_build_object('from', 'queued', 'to', 'starting', 'worker', CAST(:owner AS text))
    FROM taken
)
SELECT * FROM taken
""")
