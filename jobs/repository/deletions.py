"""Records of deletions, and what they are built from."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.models import (
    Attempt,
    Checkpoint,
    Deletion,
    Event,
    Job,
    LogChunk,
    Metric,
    Review,
    RowShard,
    SafetyRound,
    VaultRow,
)
from jobs.repository.pages import page_of_newest
from jobs.status import FINAL

_COUNTED_OF_JOB = {
    "attempts": Attempt,
    "checkpoints": Checkpoint,
    "events": Event,
    "log_chunks": LogChunk,
    "metrics": Metric,
    "reviews": Review,
    "safety_rounds": SafetyRound,
}
_COUNTED_OF_DATASET = {"row_shards": RowShard, "vault_entries": VaultRow}


def get_deletion(session: Session, deletion_id: str) -> Deletion:
    deletion = session.get(Deletion, deletion_id)
    if deletion is None:
        raise NotFound("deletion_not_found", f"there is no deletion {deletion_id!r}")
    return deletion


def find_deletion_of(session: Session, subject_id: str) -> Deletion | None:
    """By the id of what was deleted."""
    return session.scalar(select(Deletion).where(Deletion.subject_id == subject_id))


def list_deletions(
    session: Session, *, limit: int, after: str | None, subject_id: str | None = None
) -> Sequence[Deletion]:
    """Newest first."""
    query = select(Deletion)
    if subject_id is not None:
        query = query.where(Deletion.subject_id == subject_id)
    return session.scalars(page_of_newest(query, Deletion.id, after, limit)).all()


def list_deletions_with_files(session: Session, limit: int) -> Sequence[Deletion]:
    """Those whose files in the store are not deleted yet."""
    return session.scalars(deletions_with_files().order_by(Deletion.id).limit(limit)).all()


def deletions_with_files() -> Select[Deletion]:
    return select(Deletion).where(Deletion.completed_at.is_(None), Deletion.files_deleted_at.is_(None))


def list_deletions_with_work_folders(session: Session) -> Sequence[Deletion]:
    """Those of which a machine may have something; all of them: each machine looks for its own."""
    is_open = (Deletion.completed_at.is_(None), func.jsonb_array_length(Deletion.work_folders) > 0)
    return session.scalars(select(Deletion).where(*is_open).order_by(Deletion.id)).all()


def lock_deletion(session: Session, deletion_id: str) -> Deletion:
    """As it is now, whatever this session read of it before."""
    query = select(Deletion).where(Deletion.id == deletion_id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()


def count_rows_of_job(session: Session, job_id: str) -> dict[str, int]:
    """By table; and the lines of its log."""
    counts = {name: _count(session, table.job_id == job_id) for name, table in _COUNTED_OF_JOB.items()}  # type: ignore[attr-defined]
    lines = session.scalar(select(func.sum(LogChunk.num_lines)).where(LogChunk.job_id == job_id))
    return {**counts, "log_lines": int(lines or 0)}


def count_rows_of_dataset(session: Session, dataset_id: str) -> dict[str, int]:
    """By table."""
    of_dataset = _COUNTED_OF_DATASET.items()
    return {name: _count(session, table.dataset_id == dataset_id) for name, table in of_dataset}  # type: ignore[attr-defined]


def _count(session: Session, of_it: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).where(of_it)) or 0


def count_unfinished_descendants(session: Session, job_id: str) -> int:
    """Jobs that are to go on from it."""
    goes_on = (Job.initial_job_id == job_id, Job.status.not_in(FINAL))
    return session.scalar(select(func.count()).select_from(Job).where(*goes_on)) or 0
