"""Records of deletions: what was deleted, by whom, and whether all of it is gone."""

import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import ConfigDict

from api.dependencies import Caller, TransactionDep
from api.pages import Page, ReadModel
from jobs import repository
from jobs.models import Deletion

router = APIRouter(prefix="/deletions", tags=["deletions"])


_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_DATASET = "ds_01JD0Q3K7M8V6Y2C5W9X4ZT1RA"
_EXAMPLE: dict[str, Any] = {
    "object": "deletion",
    "id": "del_01JD0R5T2Q9W8E7Y6V4X3Z1PBN",
    "deleted": True,
    "kind": "dataset",
    "subject": _DATASET,
    "requested_by": "key_01JD0P9H8G7F6E5D4C3B2A1ZYX",
    "requested_at": "2026-11-23T08:00:00Z",
    "record": {"id": _DATASET, "sha256": _SHA256, "num_rows": 207, "deleted_rows": {"row_shards": 140}},
    "record_sha256": _SHA256,
    "files": [{"key": f"datasets/{_DATASET}/data", "bytes": 51200, "sha256": _SHA256}],
    "work_folders": [],
    "files_deleted_at": "2026-11-23T08:00:01Z",
    "completed_at": "2026-11-23T08:00:01Z",
}


class DeletedFile(ReadModel):
    key: str
    """Its place in the store."""
    bytes: int
    sha256: str | None
    """Null for one that no row told of, such as what a worker that died left behind."""


class DeletedWorkFolder(ReadModel):
    attempt: int
    host: str
    """The worker's machine that the attempt ran on."""
    deleted_at: datetime.datetime | None
    """Null: that machine did not say so yet."""


class DeletionRead(ReadModel):
    """The proof that something was deleted; it names ids, numbers and hashes, and nothing that the thing said."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    object: Literal["deletion"] = "deletion"
    id: str
    deleted: Literal[True] = True
    """From `requested_at` on nobody finds it."""
    kind: Literal["job", "dataset"]
    subject: str
    """The id of what was deleted."""
    requested_by: str
    """The id of the API key."""
    requested_at: datetime.datetime
    record: dict[str, Any]
    """Hashes of the request, the datasets and the adapter, and how many rows of each table were deleted."""
    record_sha256: str
    """Of `record` as JSON with sorted keys and no spaces; the audit log has it, too."""
    files: list[DeletedFile]
    """Objects of the store."""
    work_folders: list[DeletedWorkFolder]
    files_deleted_at: datetime.datetime | None
    """Since then the store has nothing of it."""
    completed_at: datetime.datetime | None
    """Since then no machine has; null: a worker is at it, or waits for the store or a machine."""


@router.get("", summary="List deletions, newest first")
def list_deletions(
    transaction: TransactionDep,
    subject: Annotated[str | None, Query(description="Only that of the job or dataset with this id.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: Annotated[str | None, Query(description="The last deletion's id of the page before.")] = None,
) -> Page[DeletionRead]:
    with transaction as caller:
        found = repository.list_deletions(caller.session, limit=limit + 1, after=after, subject_id=subject)
        return Page(data=[read_deletion(deletion) for deletion in found[:limit]], has_more=len(found) > limit)


@router.get("/{deletion_id}", summary="One deletion, and how far it is")
def get_deletion(deletion_id: str, transaction: TransactionDep) -> DeletionRead:
    with transaction as caller:
        return read_deletion(repository.get_deletion(caller.session, deletion_id))


def read_deletion(deletion: Deletion) -> DeletionRead:
    return DeletionRead(
        id=deletion.id,
        kind="job" if deletion.kind == "job" else "dataset",
        subject=deletion.subject_id,
        requested_by=deletion.requested_by,
        requested_at=deletion.requested_at,
        record=deletion.record,
        record_sha256=deletion.record_sha256,
        files=[DeletedFile(**file) for file in deletion.files],
        work_folders=[DeletedWorkFolder(**folder) for folder in deletion.work_folders],
        files_deleted_at=deletion.files_deleted_at,
        completed_at=deletion.completed_at,
    )


def tell_deletion(caller: Caller, deletion: Deletion) -> DeletionRead:
    """The answer to its request, whose entry in the audit log names the record."""
    caller.told = {"deletion": deletion.id, "record_sha256": deletion.record_sha256}
    return read_deletion(deletion)
