"""Files as OpenAI's clients know them: the datasets of our own API, and the results of jobs."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, BinaryIO, Literal, NoReturn

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from api.dependencies import IdentityDep, Services, ServicesDep, Transaction, TransactionDep
from api.idempotency import SendingDep
from api.routes.datasets import FORM_FIELDS, NewDataset, read_name, store_dataset
from api.routes.deletions import tell_deletion
from api.routes.jobs import read_chunks, tell_content
from api.routes.openai import ids
from api.routes.openai.ids import Result
from api.routes.openai.results import read_result_file, write_step_metrics
from api.routes.openai.schemas import DeletedObject, FileObject, ListObject, build_list, read_file
from jobs import lifecycle, repository
from jobs.data_policy import build_policies
from jobs.errors import Conflict, InvalidRequest
from jobs.models import Dataset
from jobs.repository import Identity
from jobs.status import DatasetStatus
from jobs.task_queue import Queue

router = APIRouter(prefix="/files")

PURPOSE = "fine-tune"
_OPTION = re.compile(r"medtune\[(\w+)\]")
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": [PURPOSE]},
                        **{f"medtune[{name}]": {"type": "string"} for name in FORM_FIELDS if name != "file"},
                    },
                }
            }
        },
    }
}


@router.post("", name="create_dataset", summary="Upload a file of rows", openapi_extra=_FORM, response_model=FileObject)
async def create_file(request: Request, identity: IdentityDep, services: ServicesDep, sending: SendingDep) -> Response:
    """A dataset of `POST /datasets`, whose other fields come by `extra_body={"medtune": {...}}`."""
    async with request.form(max_files=1, max_fields=12) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidRequest("file_missing", "file: send a file in multipart/form-data", param="file")
        fields = {name: str(value) for name, value in form.multi_items() if name != "file"}
        check_purpose(fields.pop("purpose", None))
        new = build_new_dataset(services, identity, file.file, file.filename, read_options(fields))
        answer = await run_in_threadpool(store_dataset, services, identity, new, sending, _write_answer)
    return Response(answer, media_type="application/json")


@router.get("", name="list_datasets", summary="List files of rows")
def list_files(
    transaction: TransactionDep,
    purpose: str = PURPOSE,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(description="The last file's id of the page before.")] = None,
) -> ListObject[FileObject]:
    """Result files are not listed: their jobs name them."""
    check_purpose(purpose)
    cursor = ids.read_cursor(after, "file-", "ds_")
    with transaction as caller:
        datasets = repository.list_datasets(caller.session, limit=limit + 1, after=cursor, oldest_first=order == "asc")
    return build_list([read_file(dataset) for dataset in datasets], limit)


# Results have routes of their own, so that each wants the right, and leaves the trace, of what it shows.


@router.get("/{result_id}-metrics", name="list_metrics", summary="A job's table of steps")
def get_metrics_file(result_id: str, transaction: TransactionDep) -> FileObject:
    with transaction as caller:
        adapter = repository.get_adapter(caller.session, ids.read_result_id(result_id))
        return read_result_file(adapter, Result.METRICS, len(write_step_metrics(caller.session, adapter.job_id)))


@router.get(
    "/{result_id}-metrics/content",
    name="list_metrics",
    summary="The CSV of a job's steps",
    response_class=StreamingResponse,
    responses=tell_content("text/csv"),
)
def download_metrics(result_id: str, transaction: TransactionDep) -> Response:
    with transaction as caller:
        adapter = repository.get_adapter(caller.session, ids.read_result_id(result_id))
        return Response(write_step_metrics(caller.session, adapter.job_id), media_type="text/csv")


@router.get("/{result_id}-adapter", name="get_adapter", summary="A job's adapter")
def get_adapter_file(result_id: str, transaction: TransactionDep) -> FileObject:
    with transaction as caller:
        adapter = repository.get_adapter(caller.session, ids.read_result_id(result_id))
        return read_result_file(adapter, Result.ADAPTER, adapter.num_bytes)


@router.get(
    "/{result_id}-adapter/content",
    name="download_adapter",
    summary="The archive of a job's adapter",
    response_class=StreamingResponse,
    responses=tell_content("application/gzip"),
)
def download_adapter_file(result_id: str, transaction: TransactionDep, services: ServicesDep) -> Response:
    with transaction as caller:
        caller.object_id = ids.read_result_id(result_id)
        adapter = repository.get_adapter(caller.session, caller.object_id)
    return _stream(services.store.open(adapter.store_key), adapter.num_bytes, "application/gzip")


@router.delete("/{result_id}-metrics", name="delete_dataset", summary="Refused: results of a job stay with it")
def delete_metrics_file(result_id: str, transaction: TransactionDep) -> DeletedObject:
    return _refuse_to_delete(result_id, transaction)


@router.delete("/{result_id}-adapter", name="delete_dataset", summary="Refused: results of a job stay with it")
def delete_adapter_file(result_id: str, transaction: TransactionDep) -> DeletedObject:
    """`DELETE /v1/models/{model}` withdraws an adapter."""
    return _refuse_to_delete(result_id, transaction)


def _refuse_to_delete(result_id: str, transaction: Transaction) -> NoReturn:
    with transaction as caller:
        caller.object_id = ids.read_result_id(result_id)
        repository.get_adapter(caller.session, caller.object_id)
        raise InvalidRequest("file_is_a_result", "results of a job stay with the job", param="file_id")


@router.get("/{file_id}", name="get_dataset", summary="One file of rows")
def get_file(file_id: str, transaction: TransactionDep) -> FileObject:
    with transaction as caller:
        return read_file(repository.get_dataset(caller.session, ids.read_file_id(file_id)))


@router.get(
    "/{file_id}/content",
    summary="The rows of a file, as they are trained on",
    response_class=StreamingResponse,
    responses=tell_content("application/octet-stream"),
)
def download_file(file_id: str, transaction: TransactionDep, services: ServicesDep) -> Response:
    with transaction as caller:
        caller.object_id = ids.read_file_id(file_id)
        dataset = repository.get_dataset(caller.session, caller.object_id)
        if dataset.status == DatasetStatus.VALIDATING:
            raise Conflict("dataset_not_checked", "the check is not done yet; wait until the file is processed")
    return _stream(services.store.open(dataset.store_key), dataset.num_bytes, "application/octet-stream")


@router.delete("/{file_id}", name="delete_dataset", summary="Delete a file that no job names")
def delete_file(file_id: str, transaction: TransactionDep, services: ServicesDep) -> DeletedObject:
    with transaction as caller:
        caller.object_id = ids.read_file_id(file_id)
        tell_deletion(caller, lifecycle.delete_dataset(caller.session, caller.identity, caller.object_id))
    services.doorbell.ring(Queue.CHECK)
    return DeletedObject(id=file_id, object="file")


def check_purpose(purpose: str | None) -> None:
    if purpose != PURPOSE:
        raise InvalidRequest("purpose_not_supported", f"purpose: only {PURPOSE}", param="purpose")


def read_options(fields: Mapping[str, str]) -> dict[str, str]:
    """Of a form, `medtune[name]` as `name`. Raises InvalidRequest."""
    options = {}
    for field, value in fields.items():
        if field.startswith("expires_after"):
            message = "expires_after: files stay until they are deleted"
            raise InvalidRequest("expires_after_not_supported", message, param="expires_after")
        if (match := _OPTION.fullmatch(field)) is None:
            raise InvalidRequest("unknown_field", f"{field}: there is no such field", param=field)
        options[match[1]] = value
    return options


def build_new_dataset(
    services: Services, identity: Identity, file: BinaryIO, filename: str | None, options: dict[str, str]
) -> NewDataset:
    """Raises InvalidRequest."""
    for option in options:
        if option == "file" or option not in FORM_FIELDS:
            param = f"medtune.{option}"
            raise InvalidRequest("unknown_field", f"{param}: there is no such field", param=param)
    fields = {name: value for name, value in options.items() if name != "name"}
    name = read_name(options.get("name"))
    return NewDataset(file, filename, name, fields, build_policies(identity, services.settings, fields))


def _write_answer(_session: Session, dataset: Dataset) -> str:
    return read_file(dataset).model_dump_json()


def _stream(file: BinaryIO, num_bytes: int, media_type: str) -> StreamingResponse:
    return StreamingResponse(read_chunks(file), media_type=media_type, headers={"Content-Length": str(num_bytes)})
