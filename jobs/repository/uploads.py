"""Uploads in parts."""

from collections.abc import Sequence

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.models import Upload, UploadPart
from jobs.status import UploadStatus


def get_upload(session: Session, upload_id: str) -> Upload:
    return _check(upload_id, session.get(Upload, upload_id))


def lock_upload(session: Session, upload_id: str) -> Upload:
    """As it is now, whatever this session read of it before."""
    query = select(Upload).where(Upload.id == upload_id).with_for_update()
    return _check(upload_id, session.scalar(query.execution_options(populate_existing=True)))


def is_upload_over(session: Session, upload_id: str) -> bool:
    return bool(session.scalar(select(Upload.expires_at < func.now()).where(Upload.id == upload_id)))


def list_upload_parts(session: Session, upload_id: str) -> Sequence[UploadPart]:
    return session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id)).all()


def lock_upload_that_is_over(session: Session) -> Upload | None:
    """One that is pending still."""
    return session.scalar(uploads_that_are_over().limit(1).with_for_update(skip_locked=True))


def uploads_that_are_over() -> Select[Upload]:
    return select(Upload).where(Upload.status == UploadStatus.PENDING, Upload.expires_at < func.now())


def _check(upload_id: str, upload: Upload | None) -> Upload:
    if upload is None:
        raise NotFound("upload_not_found", f"there is no upload {upload_id!r}")
    return upload
