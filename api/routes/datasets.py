"""Upload, list, read and delete datasets."""

import codecs
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from api.dependencies import IdentityDep, Services, ServicesDep, TransactionDep
from api.pages import Page
from api.schemas import DatasetRead, Deleted, read_dataset
from jobs import repository
from jobs.database import tenant_transaction
from jobs.errors import Conflict, InvalidRequest, TooLarge
from jobs.ids import new_id
from jobs.models import Dataset
from jobs.repository import Identity
from jobs.status import DatasetStatus
from jobs.store import CHUNK_BYTES, StoreWriter
from jobs.task_queue import Queue
from trainer_core.data.file_types import ACCEPTED_FILES, HEAD_BYTES, FileType, detect_file_type

router = APIRouter(prefix="/datasets", tags=["datasets"])

_UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": f"{ACCEPTED_FILES}, told by content and not by name.",
                        },
                        "name": {"type": "string", "description": "A name for people; default: the file's."},
                    },
                }
            }
        },
    }
}


@router.post("", status_code=201, summary="Upload a dataset", openapi_extra=_UPLOAD_FORM)
async def create_dataset(request: Request, identity: IdentityDep, services: ServicesDep) -> DatasetRead:
    """Store the file. A worker checks its rows afterwards: poll until `status` is `ready` or `rejected`.

    The form is read here and not by the framework, which would take in the whole file before asking for the key.
    """
    async with request.form(max_files=1, max_fields=8) as form:
        for field in form:
            if field not in ("file", "name"):
                raise InvalidRequest("unknown_field", f"{field}: there is no such field", param=field)
        file, name = form.get("file"), form.get("name")
        if not isinstance(file, UploadFile):
            raise InvalidRequest(
                "file_missing", "file: send the dataset as a file in multipart/form-data", param="file"
            )
        if name is not None and (not isinstance(name, str) or not 0 < len(name) <= 200 or "\0" in name):
            raise InvalidRequest("invalid_field", "name: between 1 and 200 characters", param="name")
        dataset = await run_in_threadpool(_store_dataset, services, identity, file, name)
    return read_dataset(dataset)


@router.get("", summary="List datasets, newest first")
def list_datasets(
    transaction: TransactionDep, limit: Annotated[int, Query(ge=1, le=1000)] = 50, after: str | None = None
) -> Page[DatasetRead]:
    with transaction as caller:
        datasets = repository.list_datasets(caller.session, limit=limit + 1, after=after)
    return Page(data=[read_dataset(dataset) for dataset in datasets[:limit]], has_more=len(datasets) > limit)


@router.get("/{dataset_id}", summary="One dataset")
def get_dataset(dataset_id: str, transaction: TransactionDep) -> DatasetRead:
    with transaction as caller:
        return read_dataset(repository.get_dataset(caller.session, dataset_id))


@router.get("/{dataset_id}/report", summary="What the check found, by line number")
def get_report(dataset_id: str, transaction: TransactionDep) -> dict[str, Any]:
    with transaction as caller:
        dataset = repository.get_dataset(caller.session, dataset_id)
    if dataset.report is None:
        raise Conflict("dataset_not_checked", "the check is not done yet; poll the dataset's status")
    return {"object": "dataset_report", "id": dataset.id, "status": dataset.status, **dataset.report}


@router.delete("/{dataset_id}", summary="Delete a dataset that no job uses")
def delete_dataset(dataset_id: str, transaction: TransactionDep, services: ServicesDep) -> Deleted:
    with transaction as caller:
        dataset = repository.get_dataset(caller.session, dataset_id)
        if uses := repository.count_jobs_of_dataset(caller.session, dataset_id):
            raise Conflict("dataset_in_use", f"{uses} jobs name this dataset", jobs=uses)
        caller.session.delete(dataset)
    services.store.delete(dataset.store_key)  # After the commit: a row never names bytes that are gone.
    return Deleted(id=dataset_id)


def _store_dataset(services: Services, identity: Identity, file: UploadFile, name: str | None) -> Dataset:
    """Bytes first, then the row that names them; if either fails, nothing stays."""
    filename = (file.filename or "dataset").replace("\0", "")[:200]
    dataset_id = new_id("ds")
    store_key = f"datasets/{dataset_id}/data"
    with services.store.writing(store_key) as writer:
        _copy(file, writer, services.settings.max_upload_bytes)
    dataset = Dataset(
        id=dataset_id,
        tenant_id=identity.tenant_id,
        name=name or filename,
        filename=filename,
        store_key=store_key,
        num_bytes=writer.num_bytes,
        sha256=writer.sha256,
        status=DatasetStatus.VALIDATING,
        created_by=identity.key_id,
    )
    try:
        with tenant_transaction(services.sessions, identity.tenant_id) as session:
            session.add(dataset)
    except BaseException:
        services.store.delete(store_key)
        raise
    services.doorbell.ring(Queue.CHECK)
    return dataset


def _copy(file: UploadFile, writer: StoreWriter, max_bytes: int) -> None:
    """Raises TooLarge, and InvalidRequest for a file that is empty, of another type, or a text that is not UTF-8."""
    chunk = file.file.read(CHUNK_BYTES)
    is_text = _get_file_type(chunk[:HEAD_BYTES]) in (FileType.JSONL, FileType.CSV)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk:
            if writer.num_bytes + len(chunk) > max_bytes:
                raise TooLarge(
                    "file_too_large", f"file: more than {max_bytes} bytes", param="file", max_bytes=max_bytes
                )
            if is_text:
                decoder.decode(chunk)
            writer.write(chunk)
            chunk = file.file.read(CHUNK_BYTES)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise InvalidRequest(
            "file_not_utf8",
            f"file: not UTF-8, somewhere after byte {writer.num_bytes}; convert it, for example with iconv",
            param="file",
        ) from None


def _get_file_type(head: bytes) -> FileType:
    if not head:
        raise InvalidRequest("file_empty", "file: it is empty", param="file")
    file_type = detect_file_type(head)
    if file_type is None:
        raise InvalidRequest(
            "unsupported_file_type",
            f"the file begins with neither a JSON object nor a header with known columns; send {ACCEPTED_FILES}",
            param="file",
        )
    return file_type
