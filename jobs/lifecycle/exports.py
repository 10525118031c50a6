"""What the export of a merged model causes: it is asked for, taken by a worker, and ends as an archive or a reason."""

import datetime

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import Conflict, LeaseLost
from jobs.models import Export, Json
from jobs.repository import Identity
from jobs.status import AdapterState, ExportStatus
from jobs.store import StoreWriter

MAX_TRIES = 3
"""So often a merge is begun whose worker does not come to its end."""
_EXPORTABLE = frozenset({AdapterState.APPROVED, AdapterState.RELEASED})


def request_export(session: Session, identity: Identity, job_id: str) -> Export:
    """The one that there is, unless it failed: then it is tried anew. Raises NotFound, Conflict."""
    adapter = repository.lock_adapter(session, repository.lock_job(session, job_id))
    check_exportable(adapter.state)
    export = session.get(Export, job_id, with_for_update=True)
    if export is None:
        export = Export(job_id=job_id, tenant_id=adapter.tenant_id, created_by=identity.key_id)
        session.add(export)
    elif export.status == ExportStatus.FAILED:
        export.status, export.reason, export.finished_at, export.tries = ExportStatus.MERGING, None, None, 0
        export.created_by, export.created_at = identity.key_id, func.now()
    session.flush()
    session.refresh(export)
    return export


def check_exportable(state: AdapterState) -> None:
    """Raises Conflict."""
    if state not in _EXPORTABLE:
        remedy = "let somebody approve it first: POST /adapters/{job}/approve"
        raise Conflict("adapter_is_not_approved", f"the adapter is {state}", state=state, remedy=remedy)


def claim_export(session: Session, owner: str, seconds: float) -> Export | None:
    """The oldest that waits and that no living worker merges already."""
    export = repository.lock_waiting_export(session)
    if export is None:
        return None
    export.tries += 1
    if export.tries > MAX_TRIES:
        message = f"{MAX_TRIES} workers began the merge, and none came to its end; their logs say more"
        remedy = "see that a worker has memory and disk for the whole base in 16 bits"
        _fail(export, {"code": "merge_gave_up", "message": message, "remedy": remedy})
        return None
    export.lease_owner = owner
    export.lease_expires_at = func.now() + datetime.timedelta(seconds=seconds)
    session.flush()
    return export


def renew_export(session: Session, job_id: str, owner: str, seconds: float) -> None:
    """Raises LeaseLost, also when the job was deleted."""
    expires_at = func.greatest(Export.lease_expires_at, func.now() + datetime.timedelta(seconds=seconds))
    mine = (Export.job_id == job_id, Export.lease_owner == owner)
    renewed = session.execute(update(Export).where(*mine).values(lease_expires_at=expires_at).returning(Export.job_id))
    if renewed.first() is None:
        raise LeaseLost(job_id)


def finish_export(session: Session, job_id: str, owner: str, store_key: str, written: StoreWriter) -> None:
    """Raises LeaseLost."""
    export = _lock(session, job_id, owner)
    export.status, export.finished_at = ExportStatus.READY, func.now()
    export.store_key, export.num_bytes, export.sha256 = store_key, written.num_bytes, written.sha256
    export.lease_owner = export.lease_expires_at = None


def fail_export(session: Session, job_id: str, owner: str, reason: Json) -> None:
    """Raises LeaseLost."""
    _fail(_lock(session, job_id, owner), reason)


def release_export(session: Session, job_id: str, owner: str) -> None:
    """Its worker must stop, and that is no failure: another begins anew, at once. Raises LeaseLost."""
    export = _lock(session, job_id, owner)
    export.lease_owner = export.lease_expires_at = None
    export.tries -= 1


def _lock(session: Session, job_id: str, owner: str) -> Export:
    export = session.get(Export, job_id, with_for_update=True)
    if export is None or export.lease_owner != owner:
        raise LeaseLost(job_id)
    return export


def _fail(export: Export, reason: Json) -> None:
    export.status, export.reason, export.finished_at = ExportStatus.FAILED, reason, func.now()
    export.lease_owner = export.lease_expires_at = None
