"""Which datasets a row is in, and which adapters were trained on those."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import DateTime, Select, Text, and_, cast, false, func, literal, null, or_, select, true, union_all
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.models import Adapter, Checkpoint, Dataset, Deletion, Job, RowShard


def list_datasets_with_row(session: Session, hashes: Collection[bytes]) -> Sequence[Dataset]:
    """Those that have a row with one of these hashes, of either form; newest first."""
    # That the place found is not where a hash begins is as likely as that two rows have one hash.
    found = [
        and_(RowShard.shard == row_hash[0], func.position(literal(row_hash).op("IN")(RowShard.hashes)) > 0)
        for row_hash in hashes
    ]
    ids = select(RowShard.dataset_id).where(or_(false(), *found))
    return session.scalars(select(Dataset).where(Dataset.id.in_(ids)).order_by(Dataset.id.desc())).all()


def list_key_versions_of_rows(session: Session) -> Sequence[int]:
    """Of the keys under which rows as they were uploaded are hashed: one for each dataset with replaced identifiers."""
    of_dataset = (RowShard.dataset_id == Dataset.id, RowShard.is_uploaded)
    one = select(RowShard.key_version).where(*of_dataset).limit(1).lateral()  # And not all shards of all datasets.
    versions = select(one.c.key_version).select_from(Dataset).join(one, true()).distinct()
    return [version for version in session.scalars(versions) if version is not None]


def find_initial(session: Session, job: Job) -> Adapter | Checkpoint | None:
    """What a job's `init_from` names; None: nothing, or it is gone."""
    initial = job.spec.get("init_from") or {}
    if initial.get("checkpoint") is not None:
        return session.get(Checkpoint, initial["checkpoint"])
    return session.get(Adapter, initial["job"]) if initial else None


def get_checkpoint(session: Session, checkpoint_id: str) -> Checkpoint:
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None:
        raise NotFound("checkpoint_not_found", f"there is no checkpoint {checkpoint_id!r}")
    return checkpoint


def find_job(session: Session, job_id: str) -> Job | None:
    return session.get(Job, job_id)


def list_ancestors(session: Session, job: Job) -> tuple[list[Job], str | None]:
    """The jobs whose weights it began with, the nearest first; and the id of the first that this tenant cannot see."""
    found: list[Job] = []
    while (job_id := (job.spec.get("init_from") or {}).get("job")) is not None:
        ancestor = find_job(session, job_id)
        if ancestor is None:
            return found, job_id
        found.append(ancestor)
        job = ancestor
    return found, None


def keep_job(session: Session, job_id: str) -> Job | None:
    """It is not deleted before this transaction's end."""
    return session.scalar(select(Job).where(Job.id == job_id).with_for_update(read=True, key_share=True))


def list_jobs_of_datasets(session: Session, dataset_ids: Collection[str]) -> Sequence[Any]:
    """Newest first, with the states of their adapters; and those that go on from them, over any number of jobs.

    Also those that were deleted, as far as their records tell.
    """
    one, job = (union_all(_LIVING, _DELETED).subquery() for _ in range(2))
    child = _DERIVATIONS.subquery()
    uses = or_(one.c.dataset_id.in_(dataset_ids), one.c.validation_dataset_id.in_(dataset_ids))
    found = select(one.c.id).where(uses).cte("found", recursive=True)
    found = found.union(select(child.c.id).join(found, child.c.derived_from == found.c.id))
    ids = session.scalars(select(found.c.id)).all()  # On their own: joined to them, all jobs would be read.
    return session.execute(select(job).where(job.c.id.in_(ids)).order_by(job.c.id.desc())).all()


def _select_living() -> Select[Any]:
    columns = (Job.id, Job.name, Job.model, Job.status, Job.dataset_id, Job.validation_dataset_id, Job.created_at)
    return select(
        *columns,
        Job.__table__.c.initial_job_id.label("derived_from"),
        cast(Adapter.state, Text).label("adapter_state"),
        Adapter.sha256.label("adapter_sha256"),
        cast(null(), DateTime(timezone=True)).label("deleted_at"),
    ).outerjoin(Adapter, Adapter.job_id == Job.id)


def _select_deleted() -> Select[Any]:
    """With the same columns."""
    told = Deletion.__table__.c.record
    return select(
        Deletion.subject_id,
        cast(null(), Text),
        told["model"].astext,
        told["status"].astext,
        told["dataset"]["id"].astext,
        told["validation_dataset"]["id"].astext,
        cast(told["created_at"].astext, DateTime(timezone=True)),
        told["init_from"]["job"].astext,
        told["adapter"]["state"].astext,
        told["adapter"]["sha256"].astext,
        Deletion.requested_at,
    ).where(Deletion.kind == "job")


_LIVING, _DELETED = _select_living(), _select_deleted()
_DERIVATIONS = union_all(
    select(Job.id, Job.initial_job_id.label("derived_from")),
    select(Deletion.subject_id, Deletion.__table__.c.record["init_from"]["job"].astext).where(Deletion.kind == "job"),
)
