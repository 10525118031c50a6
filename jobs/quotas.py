"""What may wait, and be stored, over all processes of the service: counted by the database, under a lock."""

from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import LimitReached
from jobs.repository import Identity
from jobs.settings import Settings


def check_tenant_queue(session: Session, identity: Identity, settings: Settings) -> None:
    """One more job of the tenant may wait. Raises LimitReached."""
    limit = settings.tenant_max_queued
    if limit is not None and repository.count_waiting_jobs_of_tenant(session, identity.tenant_id) >= limit:
        message = f"{limit} jobs of this tenant wait already, which is its limit"
        raise LimitReached("queue_limit_reached", message, remedy="try again when some of them have started")


def check_storage(
    session: Session, identity: Identity, settings: Settings, num_bytes: int, param: str = "file"
) -> None:
    """So many bytes more may be stored. Raises LimitReached."""
    limits = {"key": identity.max_storage_bytes, "tenant": settings.tenant_max_storage_bytes}
    if all(limit is None for limit in limits.values()):
        return
    stored = repository.sum_stored_bytes(session, identity.tenant_id, identity.key_id)
    for (owner, limit), used in zip(limits.items(), stored, strict=True):
        if limit is not None and used + num_bytes > limit:
            raise LimitReached(
                "storage_limit_reached",
                f"the {owner} stores {used} bytes; {num_bytes} more are over its limit of {limit}",
                param=param,
                remedy="delete datasets that no job uses any more, or cancel uploads",
            )
