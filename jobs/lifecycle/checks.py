"""What the check of a dataset causes."""

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import LeaseLost
from jobs.lifecycle.changes import Ending, change_status, finish
from jobs.models import Dataset, Job, Json, RowShard, VaultRow
from jobs.quotas import check_storage
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.status import DatasetStatus, FailureReason, Fault, JobStatus, PhiPolicy

CHECK_BYTES_PER_SECOND = 2e6
"""A check is surely faster than this."""
SHARDS_AT_ONCE = 16


def claim_dataset(session: Session, owner: str, seconds: float) -> Dataset | None:
    """The oldest dataset that waits for its check and that no living worker checks already.

    The lease is long enough to fetch it and read its rows; then it is renewed.
    """
    dataset = repository.lock_waiting_dataset(session)
    if dataset is not None:
        dataset.lease_owner = owner
        seconds += dataset.num_bytes / CHECK_BYTES_PER_SECOND
        dataset.lease_expires_at = func.now() + datetime.timedelta(seconds=seconds)
        session.flush()
    return dataset


def renew_dataset(session: Session, dataset_id: str, owner: str, seconds: float) -> None:
    """Its check goes on. Raises LeaseLost."""
    expires_at = func.greatest(Dataset.lease_expires_at, func.now() + datetime.timedelta(seconds=seconds))
    mine = (Dataset.id == dataset_id, Dataset.lease_owner == owner, Dataset.status == DatasetStatus.VALIDATING)
    renewed = session.execute(update(Dataset).where(*mine).values(lease_expires_at=expires_at).returning(Dataset.id))
    if renewed.first() is None:
        raise LeaseLost(dataset_id)


def size_dataset(session: Session, dataset: Dataset, settings: Settings, num_bytes: int) -> None:
    """The claimed dataset's bytes count from now on, before they are stored. Raises LeaseLost, LimitReached."""
    max_storage_bytes = repository.find_storage_limit(session, dataset.created_by)
    identity = Identity(dataset.created_by, dataset.tenant_id, is_admin=False, max_storage_bytes=max_storage_bytes)
    check_storage(session, identity, settings, num_bytes - dataset.num_bytes)
    mine = (
        Dataset.id == dataset.id,
        Dataset.lease_owner == dataset.lease_owner,
        Dataset.status == DatasetStatus.VALIDATING,
    )
    sized = session.execute(update(Dataset).where(*mine).values(num_bytes=num_bytes).returning(Dataset.id))
    if sized.first() is None:
        raise LeaseLost(dataset.id)


@dataclass(frozen=True)
class CleanRows:
    """A dataset's rows as an object in the store: with placeholders for identifiers, and what those stand for; or as
    they were fetched."""

    store_key: str
    num_bytes: int
    sha256: str
    iter_vault_rows: Callable[[], Iterable[list[Json]]] = tuple
    """Batches of the columns of VaultRow. A transaction that is tried again asks for them again."""


@dataclass(frozen=True)
class RowHashes:
    """Of the rows that were checked: what proves later that a row was among them, or was not."""

    rows_digest: str
    iter_shards: Callable[[], Iterable[Json]]
    """The columns of RowShard. A transaction that is tried again asks for them again."""


def finish_dataset(
    session: Session,
    dataset_id: str,
    owner: str,
    report: Json,
    clean: CleanRows | None = None,
    hashes: RowHashes | None = None,
) -> None:
    """Record the check's result; jobs that waited for it go on, or fail. Raises LeaseLost."""
    _keep_in_place(session, dataset_id, owner)
    shards = iter(hashes.iter_shards() if hashes else ())
    while batch := list(islice(shards, SHARDS_AT_ONCE)):
        session.execute(insert(RowShard), batch)
    for batch in clean.iter_vault_rows() if clean else ():
        session.execute(insert(VaultRow), batch)
    dataset = repository.lock_dataset(session, dataset_id)
    if dataset is None or dataset.lease_owner != owner or dataset.status != DatasetStatus.VALIDATING:
        raise LeaseLost(dataset_id)
    dataset.status = DatasetStatus.READY if report["ok"] else DatasetStatus.REJECTED
    dataset.num_rows, dataset.report, dataset.reason = report["rows"], report, None
    # A check that did not come to its end may have left something, too, where the rows are brought by checks.
    dataset.has_leftovers = not report["ok"] or dataset.phi_policy == PhiPolicy.REPLACE or dataset.uri is not None
    if clean is not None:
        dataset.store_key, dataset.num_bytes, dataset.sha256 = clean.store_key, clean.num_bytes, clean.sha256
    dataset.rows_digest = hashes.rows_digest if hashes else None
    dataset.validated_at = func.now()
    dataset.lease_owner = dataset.lease_expires_at = None
    session.flush()
    for job in repository.lock_jobs_waiting_for_dataset(session, dataset_id):
        go_on_after_check(session, job, "the dataset passed its check")


def _keep_in_place(session: Session, dataset_id: str, owner: str) -> None:
    """Meanwhile the dataset stays and nobody else takes its check; renewals of the lease and new jobs need not wait."""
    mine = (Dataset.id == dataset_id, Dataset.lease_owner == owner, Dataset.status == DatasetStatus.VALIDATING)
    if session.scalar(select(Dataset.id).where(*mine).with_for_update(read=True, key_share=True)) is None:
        raise LeaseLost(dataset_id)


def forget_leftovers(session: Session, dataset_id: str) -> None:
    """They are gone from the store."""
    session.execute(update(Dataset).where(Dataset.id == dataset_id).values(has_leftovers=False))


def note_obstacle(session: Session, dataset_id: str, owner: str, reason: Json) -> None:
    """Its check cannot be made now, and is tried again when the lease ends; whoever lost it notes nothing."""
    mine = (Dataset.id == dataset_id, Dataset.lease_owner == owner, Dataset.status == DatasetStatus.VALIDATING)
    session.execute(update(Dataset).where(*mine).values(reason=reason))


def release_datasets(session: Session, owner: str) -> None:
    """Their checks begin again at once: the owner's process is gone, or stops."""
    held = update(Dataset).where(Dataset.lease_owner == owner, Dataset.status == DatasetStatus.VALIDATING)
    session.execute(held.values(lease_owner=None, lease_expires_at=None))


def go_on_after_check(session: Session, job: Job, message: str) -> None:
    """A job that waited goes where its datasets' checks let it."""
    statuses = repository.list_dataset_statuses(session, job)
    if DatasetStatus.REJECTED in statuses:
        reason = {
            "code": FailureReason.DATASET_REJECTED,
            "message": "the dataset did not pass its check",
            "remedy": "read GET /datasets/{id}/report, mend the rows that it names and upload the file again",
        }
        finish(session, job, JobStatus.FAILED, Ending(reason, Fault.USER))
    elif DatasetStatus.VALIDATING not in statuses:
        job.queued_at = func.now()
        change_status(session, job, JobStatus.QUEUED, message)
    elif job.status != JobStatus.VALIDATING:
        change_status(session, job, JobStatus.VALIDATING, message)
