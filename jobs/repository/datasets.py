"""Datasets, and what waits for their checks."""

from collections.abc import Iterator, Sequence

from sqlalchemy import Select, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.models import Dataset, Job, Upload, VaultRow
from jobs.repository.deletions import deletions_with_files
from jobs.repository.pages import page_of_newest, page_of_oldest
from jobs.repository.uploads import uploads_that_are_over
from jobs.status import DatasetStatus, UploadStatus

_BATCH = 1000


def get_dataset(session: Session, dataset_id: str) -> Dataset:
    dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        raise NotFound("dataset_not_found", f"there is no dataset {dataset_id!r}")
    return dataset


def find_dataset(session: Session, dataset_id: str | None) -> Dataset | None:
    return None if dataset_id is None else session.get(Dataset, dataset_id)


def list_datasets(session: Session, *, limit: int, after: str | None, oldest_first: bool = False) -> Sequence[Dataset]:
    """Newest first, up to `limit` older than `after`; or the other way round."""
    page = page_of_oldest if oldest_first else page_of_newest
    return session.scalars(page(select(Dataset), Dataset.id, after, limit)).all()


def sum_stored_bytes(session: Session, tenant_id: str, key_id: str) -> tuple[int, int]:
    """Bytes of the key's datasets, and of all of the tenant's; rejected ones have none any more. And those that uploads
    in parts have announced.

    Whoever asks for the same tenant meanwhile waits.
    """
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"stored/{tenant_id}", 0))))
    sums = (func.sum(Dataset.num_bytes).filter(Dataset.created_by == key_id), func.sum(Dataset.num_bytes))
    counted = (Dataset.tenant_id == tenant_id, Dataset.status != DatasetStatus.REJECTED)
    stored = session.execute(select(*sums).where(*counted)).one()
    sums = (func.sum(Upload.num_bytes).filter(Upload.created_by == key_id), func.sum(Upload.num_bytes))
    counted = (Upload.tenant_id == tenant_id, Upload.status == UploadStatus.PENDING)
    announced = session.execute(select(*sums).where(*counted)).one()
    of_key, of_tenant = (int((a or 0) + (b or 0)) for a, b in zip(stored, announced, strict=True))
    return of_key, of_tenant


def count_jobs_of_dataset(session: Session, dataset_id: str) -> int:
    uses = or_(Job.dataset_id == dataset_id, Job.validation_dataset_id == dataset_id)
    return session.scalar(select(func.count()).select_from(Job).where(uses)) or 0


def count_waiting_datasets(session: Session, at_most: int) -> int:
    """Those that a worker could check now, rid of leftovers, or rid the store of; there may be more than `at_most`.

    Jobs, too, whose files are to be deleted, and uploads that are over.
    """
    counts = (
        select(func.count()).select_from(query.limit(at_most).subquery()).scalar_subquery()
        for query in (_waiting_datasets(), _datasets_with_leftovers(), deletions_with_files(), uploads_that_are_over())
    )
    return session.scalar(select(sum(counts, literal(0)))) or 0


def list_datasets_with_leftovers(session: Session, limit: int) -> Sequence[Dataset]:
    return session.scalars(_datasets_with_leftovers().order_by(Dataset.id).limit(limit)).all()


def find_vault_row(session: Session, key_version: int) -> VaultRow | None:
    """Any that this version of the key wrote."""
    return session.scalar(select(VaultRow).where(VaultRow.key_version == key_version).limit(1))


def iter_vault_rows(
    session: Session, dataset_id: str, *, token: str | None = None, scope: str | None = None
) -> Iterator[VaultRow]:
    """Of a dataset, by scope."""
    query = select(VaultRow).where(VaultRow.dataset_id == dataset_id)
    if token is not None:
        query = query.where(VaultRow.token == token)
    if scope is not None:
        query = query.where(VaultRow.scope == scope)
    order = (VaultRow.scope, VaultRow.label, VaultRow.blind_index, VaultRow.token)
    last = ("", "", "", "")
    while rows := session.scalars(query.where(tuple_(*order) > last).order_by(*order).limit(_BATCH)).all():
        yield from rows
        last = rows[-1].scope, rows[-1].label, rows[-1].blind_index, rows[-1].token
        session.expunge_all()  # However many there are.


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


def _datasets_with_leftovers() -> Select[Dataset]:
    return select(Dataset).where(Dataset.has_leftovers)


def _waiting_datasets() -> Select[Dataset]:
    return select(Dataset).where(
        Dataset.status == DatasetStatus.VALIDATING,
        or_(Dataset.lease_expires_at.is_(None), Dataset.lease_expires_at < func.now()),
    )
