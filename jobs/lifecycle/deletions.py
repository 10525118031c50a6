"""What a deletion causes. In one transaction the rows go and a record comes; from then on nobody finds the thing. Its
files follow, and the record tells which they were before the first of them goes: a crash loses no part of the proof.
"""

import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from jobs import audit_log, repository
from jobs.errors import Conflict, NotFound
from jobs.ids import new_id
from jobs.models import Attempt, Dataset, Deletion, IdempotencyKey, Job, Json, Upload
from jobs.repository import Identity
from jobs.status import FINAL, AdapterState, DatasetStatus

_WORKER = "worker"
"""The actor of what no client asks for at that moment."""
_ID_LENGTH = 26


def delete_job(session: Session, identity: Identity, job_id: str) -> Deletion:
    """A job that ended, with everything but its lineage. Raises NotFound, Conflict."""
    job = repository.lock_job(session, job_id)
    adapter = repository.find_adapter(session, job_id)
    if job.status not in FINAL:
        remedy = "wait for its end, or cancel it: POST /jobs/{id}/cancel"
        raise Conflict("job_is_not_final", f"the job is {job.status}", status=job.status, remedy=remedy)
    if adapter is not None and repository.lock_adapter(session, job).state == AdapterState.RELEASED:
        remedy = "withdraw it first: POST /adapters/{job}/reject"
        raise Conflict("adapter_is_released", "the job's adapter is released", remedy=remedy)
    if descendants := repository.count_unfinished_descendants(session, job_id):
        message = f"{descendants} unfinished jobs go on from this one"
        raise Conflict("job_in_use", message, jobs=descendants, remedy="wait for their end, or cancel them")
    checkpoints = repository.list_checkpoints(session, job_id)
    files = [_describe_file(one) for one in (adapter, *checkpoints) if one is not None]
    folders = [
        {"attempt": attempt.number, "host": attempt.hostname, "deleted_at": None}
        for attempt in session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number))
    ]
    deletion = _add(session, identity, "job", job_id, _describe_job(session, job), files, folders)
    session.expunge_all()  # Its rows are about to go, and not by way of this session.
    session.add(deletion)
    session.execute(select(func.medtune_delete_job(job_id)))
    return deletion


def delete_dataset(session: Session, identity: Identity, dataset_id: str) -> Deletion:
    """A dataset that no job names, with its report, row hashes and vault. Raises NotFound, Conflict."""
    dataset = repository.lock_dataset(session, dataset_id)
    if dataset is None:
        raise NotFound("dataset_not_found", f"there is no dataset {dataset_id!r}")
    if uses := repository.count_jobs_of_dataset(session, dataset_id):
        remedy = "delete the jobs first: DELETE /jobs/{id}"
        raise Conflict("dataset_in_use", f"{uses} jobs name this dataset", jobs=uses, remedy=remedy)
    record = {
        **_identify_dataset(dataset),
        "bytes": dataset.num_bytes,
        "num_rows": dataset.num_rows,
        "status": dataset.status,
        "phi_policy": dataset.phi_policy,
        "created_at": _write_time(dataset.created_at),
        "deleted_rows": repository.count_rows_of_dataset(session, dataset_id),
    }
    # A rejected one has none, and of a reference that is not fetched nothing is known.
    files = [_describe_file(dataset)] if dataset.sha256 and dataset.status != DatasetStatus.REJECTED else []
    deletion = _add(session, identity, "dataset", dataset_id, record, files, [])
    session.execute(delete(Upload).where(Upload.dataset_id == dataset_id))
    session.delete(dataset)
    session.flush()
    return deletion


def note_files(session: Session, deletion_id: str, found: Mapping[str, int]) -> None:
    """Keys and sizes of objects that are about to be deleted: those that no row told of are added to the record."""
    deletion = repository.lock_deletion(session, deletion_id)
    known = {file["key"] for file in deletion.files}
    new = [{"key": key, "bytes": size, "sha256": None} for key, size in sorted(found.items()) if key not in known]
    if new:
        deletion.files = [*deletion.files, *new]


def note_files_deleted(session: Session, deletion_id: str) -> None:
    """The store has nothing of it any more."""
    deletion = repository.lock_deletion(session, deletion_id)
    if deletion.files_deleted_at is None:
        deletion.files_deleted_at = _read_clock(session)
        _complete(session, deletion)


def note_work_folder_deleted(session: Session, deletion_id: str, attempt: int) -> None:
    """The attempt's machine has nothing of it any more."""
    deletion = repository.lock_deletion(session, deletion_id)
    now = _write_time(_read_clock(session))
    folders = [
        {**one, "deleted_at": now} if one["attempt"] == attempt and one["deleted_at"] is None else one
        for one in deletion.work_folders
    ]
    if folders != deletion.work_folders:
        deletion.work_folders = folders
        _complete(session, deletion)


def compute_record_hash(record: Json) -> str:
    """SHA-256 of the record as JSON with sorted keys and without spaces."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _complete(session: Session, deletion: Deletion) -> None:
    if deletion.files_deleted_at is None or not all(one["deleted_at"] for one in deletion.work_folders):
        return
    deletion.completed_at = _read_clock(session)
    session.flush()
    told: Json = {"deletion": deletion.id, "record_sha256": deletion.record_sha256, "num_files": len(deletion.files)}
    who = {"tenant_id": deletion.tenant_id, "actor": _WORKER}
    audit_log.record(session, **who, action="complete_deletion", object_id=deletion.subject_id, **told)


def _add(
    session: Session,
    identity: Identity,
    kind: str,
    subject_id: str,
    record: Json,
    files: list[Json],
    folders: list[Json],
) -> Deletion:
    deletion = Deletion(
        id=new_id("del"),
        tenant_id=identity.tenant_id,
        kind=kind,
        subject_id=subject_id,
        requested_by=identity.key_id,
        record=record,
        record_sha256=compute_record_hash(record),
        files=files,
        work_folders=folders,
    )
    session.add(deletion)
    session.flush()
    session.refresh(deletion)
    # The answer to the request that made it shows it, too.
    made = func.right(IdempotencyKey.answer.cast(JSONB)["id"].astext, _ID_LENGTH) == subject_id[-_ID_LENGTH:]
    session.execute(
        delete(IdempotencyKey)
        .where(IdempotencyKey.tenant_id == identity.tenant_id, made)
        .execution_options(synchronize_session=False)
    )
    return deletion


def _describe_job(session: Session, job: Job) -> Json:
    adapter = repository.find_adapter(session, job.id)
    datasets = {dataset.id: dataset for dataset in repository.list_datasets_of_job(session, job)}
    validation = datasets.get(job.validation_dataset_id or "")
    return {
        "spec_sha256": compute_record_hash(job.spec),
        "model": job.model,
        "status": job.status,
        "created_at": _write_time(job.created_at),
        "finished_at": _write_time(job.finished_at),
        "parent": job.parent_id,
        "init_from": job.spec.get("init_from"),
        "dataset": _identify_dataset(datasets[job.dataset_id]),
        "validation_dataset": validation and _identify_dataset(validation),
        "adapter": adapter and {"state": adapter.state, "sha256": adapter.sha256, "bytes": adapter.num_bytes},
        "deleted_rows": repository.count_rows_of_job(session, job.id),
    }


def _identify_dataset(dataset: Dataset) -> Json:
    return {"id": dataset.id, "sha256": dataset.sha256 or None, "rows_digest": dataset.rows_digest}


def _describe_file(row: Any) -> Json:
    """Of an adapter, a checkpoint or a dataset."""
    return {"key": row.store_key, "bytes": row.num_bytes, "sha256": row.sha256 or None}


def _read_clock(session: Session) -> datetime.datetime:
    return session.scalars(select(func.now())).one()


def _write_time(time: datetime.datetime | None) -> str | None:
    return time.isoformat() if time else None
