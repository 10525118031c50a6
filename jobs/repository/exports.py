"""Exports of merged models."""

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.models import Export
from jobs.status import ExportStatus


def get_export(session: Session, job_id: str) -> Export:
    export = session.get(Export, job_id)
    if export is None:
        remedy = "ask for one: POST /jobs/{id}/export"
        raise NotFound("export_not_found", "nobody asked for this job's merged model", remedy=remedy)
    return export


def lock_waiting_export(session: Session) -> Export | None:
    return session.scalar(_waiting_exports().order_by(Export.created_at).limit(1).with_for_update(skip_locked=True))


def count_waiting_exports(session: Session, at_most: int) -> int:
    """Those that a worker could take now; there may be more than `at_most`."""
    return session.scalar(select(func.count()).select_from(_waiting_exports().limit(at_most).subquery())) or 0


def _waiting_exports() -> Select[Export]:
    is_free = or_(Export.lease_expires_at.is_(None), Export.lease_expires_at < func.now())
    return select(Export).where(Export.status == ExportStatus.MERGING, is_free)
