"""The queue: who is next, and what the table waits for."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, Select, func, select, text
from sqlalchemy.orm import Session

from jobs.models import Job
from jobs.repository.exports import count_waiting_exports
from jobs.status import JobStatus

_NEXT = text("SELECT id, fits FROM medtune_next_job(:host_gpus, :free_gpus, :patience_seconds)")


def find_next_job(session: Session, *, host_gpus: int, free_gpus: int, patience_seconds: float) -> Row[Any] | None:
    """`id` of the job whose turn it is on a host, and whether it `fits` on the GPUs that are free there now.

    The highest priority first; then the key with the fewest running jobs; then the oldest. Keys at their limit wait. A
    job that needs more GPUs than are free is passed by, until it has waited for so long that the GPUs are kept for it.
    """
    names = {"host_gpus": host_gpus, "free_gpus": free_gpus, "patience_seconds": patience_seconds}
    return session.connection().execute(_NEXT, names).first()


def count_queued_jobs(session: Session, at_most: int) -> int:
    """Those that a worker could take now; there may be more than `at_most`."""
    return session.scalar(select(func.count()).select_from(_queued_jobs().limit(at_most).subquery())) or 0


def count_waiting_work(session: Session, at_most: int) -> int:
    """What a worker that trains could take now: jobs, and merges of adapters."""
    return count_queued_jobs(session, at_most) + count_waiting_exports(session, at_most)


def count_waiting_jobs_of_key(session: Session, key_id: str) -> int:
    """Those that wait for their dataset or a worker. Whoever asks for the same key meanwhile waits."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"queued/{key_id}", 0))))
    waiting = Job.status.in_([JobStatus.VALIDATING, JobStatus.QUEUED])
    return session.scalar(select(func.count()).select_from(Job).where(Job.created_by == key_id, waiting)) or 0


def count_waiting_jobs_of_tenant(session: Session, tenant_id: str) -> int:
    """The same of all keys of the transaction's tenant."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"queued/tenant/{tenant_id}", 0))))
    waiting = Job.status.in_([JobStatus.VALIDATING, JobStatus.QUEUED])
    return session.scalar(select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, waiting)) or 0


def count_leases(session: Session) -> tuple[int, int]:
    """How many jobs have an owner, and of how many the lease is over."""
    is_over = Job.lease_expires_at < func.now()
    counts = select(func.count(), func.count().filter(is_over)).where(Job.lease_owner.is_not(None))
    held, over = session.execute(counts).one()
    return held, over


def lock_jobs_with_expired_leases(session: Session) -> Sequence[Job]:
    expired = select(Job).where(Job.lease_owner.is_not(None), Job.lease_expires_at < func.now())
    return session.scalars(expired.with_for_update(skip_locked=True)).all()


def list_overdue_jobs(session: Session, overdue: timedelta, *, at_most: int) -> Sequence[str]:
    """Ids of jobs whose lease has been over for longer than that."""
    over = select(Job.id).where(Job.lease_expires_at < func.now() - overdue)
    return session.scalars(over.order_by(Job.id).limit(at_most)).all()


def list_jobs_of_owner(session: Session, owner: str) -> Sequence[Job]:
    return session.scalars(select(Job).where(Job.lease_owner == owner)).all()


def get_database_uptime(session: Session) -> float:
    """Seconds since the server started."""
    uptime = func.extract("epoch", func.clock_timestamp() - func.pg_postmaster_start_time())
    return float(session.scalar(select(uptime)) or 0)


def get_server_version(session: Session) -> str | None:
    return session.scalar(select(func.current_setting("server_version")))


def _queued_jobs() -> Select[Job]:
    return select(Job).where(
        Job.status == JobStatus.QUEUED, Job.not_before <= func.now(), Job.cancel_requested_at.is_(None)
    )
