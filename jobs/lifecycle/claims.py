"""How a worker gets a job."""

from dataclasses import dataclass

from sqlalchemy import select, text

from jobs.database import Sessions
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


def claim_job(sessions: Sessions, claimant: Claimant) -> tuple[Job, Lease] | None:
    """The job whose turn it is, if it fits; whoever asked, and however often, each job has one owner.

    A transaction of its own, of one statement: others that claim wait for the database only, and never for a network or
    for a worker that stands still.
    """
    values = {**vars(claimant), "event_id": new_id("evt")}
    with sessions() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        job = session.scalar(select(Job).from_statement(_CLAIM), values)
    if job is None:
        return None
    return job, Lease(job.id, claimant.owner, job.lease_epoch, claimant.lease_seconds)


_CLAIM = text(
    "SELECT * FROM medtune_claim_job("
    ":owner, :hostname, :lease_seconds, :host_gpus, :free_gpus, :patience_seconds, :event_id)"
)
