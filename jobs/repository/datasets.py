"""Datasets, and what waits for their checks."""

from collections.abc import Sequence

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.models import Dataset, Job
from jobs.repository.pages import page_of_newest
from jobs.status import DatasetStatus


def get_dataset(session: Session, dataset_id: str) -> Dataset:
    dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        raise NotFound("dataset_not_found", f"there is no dataset {dataset_id!r}")
    return dataset


def list_datasets(session: Session, *, limit: int, after: str | None) -> Sequence[Dataset]:
    """Newest first; up to `limit` older than `after`."""
    return session.scalars(page_of_newest(select(Dataset), Dataset.id, after, limit)).all()


def count_jobs_of_dataset(session: Session, dataset_id: str) -> int:
    uses = or_(Job.dataset_id == dataset_id, Job.validation_dataset_id == dataset_id)
    return session.scalar(select(func.count()).select_from(Job).where(uses)) or 0


def count_waiting_datasets(session: Session, at_most: int) -> int:
    """Those that a worker could check now; there may be more than `at_most`."""
    return session.scalar(select(func.count()).select_from(_waiting_datasets().limit(at_most).subquery())) or 0


def lock_waiting_dataset(session: Session) -> Dataset | None:
    return session.scalar(_waiting_datasets().order_by(Dataset.id).limit(1).with_for_update(skip_locked=True))


def lock_dataset(session: Session, dataset_id: str) -> Dataset | None:
    return session.scalar(select(Dataset).where(Dataset.id == dataset_id).with_for_update())


def lock_datasets_of_job(session: Session, job: Job) -> None:
    """Their checks end before this transaction began, or after its end."""
    ids = [job.dataset_id, job.validation_dataset_id]
    session.execute(select(Dataset.id).where(Dataset.id.in_(ids)).order_by(Dataset.id).with_for_update(read=True))


def list_dataset_statuses(session: Session, job: Job) -> Sequence[DatasetStatus]:
    ids = [job.dataset_id, job.validation_dataset_id]
    return session.scalars(select(Dataset.status).where(Dataset.id.in_(ids))).all()


def list_datasets_of_job(session: Session, job: Job) -> Sequence[Dataset]:
    ids = [job.dataset_id, job.validation_dataset_id]
    return session.scalars(select(Dataset).where(Dataset.id.in_(ids))).all()


def _waiting_datasets() -> Select[Dataset]:
    return select(Dataset).where(
        Dataset.status == DatasetStatus.VALIDATING,
        or_(Dataset.lease_expires_at.is_(None), Dataset.lease_expires_at < func.now()),
    )
