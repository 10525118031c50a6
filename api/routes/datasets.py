"""Upload, list, read and delete datasets."""

import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from api.dependencies import IdentityDep, Services, ServicesDep, TransactionDep
from api.idempotency import SendingDep
from api.pages import Page
from api.routes.deletions import DeletionRead, tell_deletion
from api.schemas import DatasetRead, read_dataset
from jobs import audit_log, idempotency, lifecycle, repository
from jobs.data_policy import attest, build_attestation, build_policies
from jobs.database import tenant_transaction
from jobs.errors import Conflict, InvalidRequest, NotFound, TooLarge
from jobs.idempotency import Sending
from jobs.ids import new_id
from jobs.models import Dataset, Json, build_store_folder
from jobs.quotas import check_storage
from jobs.references import create_referenced_dataset
from jobs.repository import Identity
from jobs.spec import Uri
from jobs.status import DatasetStatus, OverlapPolicy, PhiPolicy
from jobs.store import CHUNK_BYTES, StoreWriter
from jobs.task_queue import Queue
from trainer_core.data.file_types import ACCEPTED_FILES, HEAD_BYTES, FileType, detect_file_type
from trainer_core.data.phi.strategy import Strategy

Body = TypeVar("Body", bound=BaseModel)

router = APIRouter(prefix="/datasets", tags=["datasets"])

FORM_FIELDS = (
    "file",
    "name",
    "phi_policy",
    "phi_strategy",
    "patient_key",
    "attested_by",
    "attestation",
    "overlap_policy",
)


class DatasetCreate(BaseModel):
    """A dataset by reference: a worker fetches its bytes when it checks them."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    uri: Uri
    """`file:///folder/file` or `s3://bucket/key`, inside the operator's `MEDTUNE_DATA_ROOTS`."""
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")] | None = None
    """A name for people; default: the file's."""
    phi_policy: str | None = None
    phi_strategy: str | None = None
    patient_key: str | None = None
    attested_by: str | None = None
    attestation: str | None = None
    overlap_policy: str | None = None


_UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": DatasetCreate.model_json_schema()},
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
                        "phi_policy": {
                            "type": "string",
                            "enum": list(PhiPolicy),
                            "description": "What becomes of it if identifiers of patients are found: `report` (it may "
                            "be trained on), `reject`, `replace` (by placeholders), or `off` (nobody looks). Default: "
                            "the operator's.",
                        },
                        "phi_strategy": {
                            "type": "string",
                            "enum": list(Strategy),
                            "description": "With `replace`: how placeholders are made. Numbers (`safe_harbor`, the "
                            "default), or keyed hashes that are the same in every dataset.",
                        },
                        "patient_key": {
                            "type": "string",
                            "description": "With `replace`: a field of the rows; those with the same value in it share "
                            "their placeholders. Default: each row has its own.",
                        },
                        "attested_by": {"type": "string", "description": "With `off`: a person's name."},
                        "attestation": {
                            "type": "string",
                            "description": "With `off`: why the rows need no search for identifiers.",
                        },
                        "overlap_policy": {
                            "type": "string",
                            "enum": list(OverlapPolicy),
                            "description": "What becomes of it if rows are there twice, or are questions of the "
                            "operator's benchmarks or safety probes: `report` (it may be trained on), `reject`, or "
                            "`off` (nobody looks). Default: the operator's.",
                        },
                    },
                }
            },
        },
    }
}


@router.post("", status_code=201, summary="Upload a dataset", response_model=DatasetRead, openapi_extra=_UPLOAD_FORM)
async def create_dataset(
    request: Request, identity: IdentityDep, services: ServicesDep, sending: SendingDep
) -> Response:
    """Store the file, or note the reference. A worker checks its rows afterwards: poll until `status` is `ready` or
    `rejected`.

    The form is read here and not by the framework, which would take in the whole file before asking for the key.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        body = _parse_body(DatasetCreate, await request.body())
        answer = await run_in_threadpool(_note_reference, services, identity, body, sending)
        return Response(answer, 201, media_type="application/json")
    async with request.form(max_files=1, max_fields=8) as form:
        for field in form:
            if field not in FORM_FIELDS:
                raise InvalidRequest("unknown_field", f"{field}: there is no such field", param=field)
        file, name = form.get("file"), form.get("name")
        if not isinstance(file, UploadFile):
            raise InvalidRequest(
                "file_missing", "file: send the dataset as a file in multipart/form-data", param="file"
            )
        texts = {field: str(form[field]) for field in form if field not in ("file", "name")}
        policy = build_policies(identity, services.settings, texts)
        new = NewDataset(file.file, file.filename, read_name(name), texts, policy)
        answer = await run_in_threadpool(store_dataset, services, identity, new, sending, _write_answer)
    return Response(answer, 201, media_type="application/json")


def read_name(name: object) -> str | None:
    """Raises InvalidRequest."""
    if name is None or (isinstance(name, str) and 0 < len(name) <= 200 and "\0" not in name):
        return name
    raise InvalidRequest("invalid_field", "name: between 1 and 200 characters", param="name")


def _write_answer(_session: Session, dataset: Dataset) -> str:
    return read_dataset(dataset).model_dump_json()


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


class Attestation(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    attested_by: str
    """The name of the person who answers for it."""
    attestation: str
    """Why the identifiers that were found are none, or may stay; 20 characters or more."""


@router.post("/{dataset_id}/attest", summary="Answer, by name, for the identifiers that were found in a dataset")
def attest_dataset(dataset_id: str, body: Attestation, transaction: TransactionDep) -> DatasetRead:
    """Without it, no adapter that was trained on a dataset with findings can be released. It is given once."""
    with transaction as caller:
        attestation = build_attestation(caller.identity, body.attested_by, body.attestation)
        dataset = repository.lock_dataset(caller.session, dataset_id)
        if dataset is None:
            raise NotFound("dataset_not_found", f"there is no dataset {dataset_id!r}")
        attest(dataset, attestation)
        return read_dataset(dataset)


@router.delete("/{dataset_id}", summary="Delete a dataset that no job names")
def delete_dataset(dataset_id: str, transaction: TransactionDep, services: ServicesDep) -> DeletionRead:
    """With its report, the hashes of its rows and what its placeholders stand for. At once nobody finds it any more; a
    worker then deletes its files, and `GET /deletions/{id}` says when all are gone. 409 while a job names it.
    """
    with transaction as caller:
        deletion = tell_deletion(caller, lifecycle.delete_dataset(caller.session, caller.identity, dataset_id))
    services.doorbell.ring(Queue.CHECK)  # After the commit: a row never names bytes that are gone.
    return deletion


def _parse_body(model: type[Body], content: bytes) -> Body:
    """As the framework does where a route has one kind of body. Raises RequestValidationError."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from None


def _note_reference(services: Services, identity: Identity, body: DatasetCreate, sending: Sending) -> str:
    policies = body.model_dump(exclude_none=True, exclude={"uri", "name"})
    with tenant_transaction(services.sessions, identity.tenant_id) as session:
        first = idempotency.claim(session, identity, sending, body.model_dump_json())
        if first.answer is not None:
            return first.answer
        dataset = create_referenced_dataset(
            session, identity, services.settings, body.uri, param="uri", name=body.name, policies=policies
        )
        session.refresh(dataset)
        answer = _write_answer(session, dataset)
        first.keep(answer)
    services.doorbell.ring(Queue.CHECK)
    return answer


@dataclass(frozen=True)
class NewDataset:
    """A file that becomes a dataset."""

    file: BinaryIO
    filename: str | None
    name: str | None
    fields: dict[str, str]
    """What the client says of it."""
    policy: Json
    """What comes of that: columns, by `build_policies`."""


def store_dataset(
    services: Services,
    identity: Identity,
    new: NewDataset,
    sending: Sending,
    write_answer: Callable[[Session, Dataset], str],
    free_reserved: Callable[[Session], None] = lambda _session: None,
) -> str:
    """The answer. Bytes first, then the row that names them; if either fails, or the same was sent before, nothing
    stays of this one. `free_reserved` is the first part of the transaction, and `write_answer` the last."""
    filename = (new.filename or "dataset").replace("\0", "")[:200]
    dataset_id = new_id("ds")
    store_key = f"{build_store_folder(dataset_id)}/data"
    with services.store.writing(store_key) as writer:
        _copy(new.file, writer, services.settings.max_upload_bytes)
    policy = new.policy
    body = json.dumps([filename, new.name, new.fields, writer.sha256], sort_keys=True)
    dataset = Dataset(
        id=dataset_id,
        tenant_id=identity.tenant_id,
        name=new.name or filename,
        filename=filename,
        store_key=store_key,
        num_bytes=writer.num_bytes,
        sha256=writer.sha256,
        status=DatasetStatus.VALIDATING,
        created_by=identity.key_id,
        **policy,
    )
    try:
        with tenant_transaction(services.sessions, identity.tenant_id) as session:
            first = idempotency.claim(session, identity, sending, body)
            if first.answer is not None:
                services.store.delete(store_key)
                return first.answer
            free_reserved(session)
            check_storage(session, identity, services.settings, dataset.num_bytes)
            session.add(dataset)
            session.flush()
            who = {"tenant_id": identity.tenant_id, "actor": identity.key_id}
            told = {name: policy[name] for name in ("phi_policy", "phi_strategy") if name in policy}
            audit_log.record(session, **who, action="create_dataset", object_id=dataset_id, **told)
            answer = write_answer(session, dataset)
            first.keep(answer)
    except BaseException:
        services.store.delete(store_key)
        raise
    services.doorbell.ring(Queue.CHECK)
    return answer


def _copy(file: BinaryIO, writer: StoreWriter, max_bytes: int) -> None:
    """Raises TooLarge, and InvalidRequest for a file that is empty, of another type, or a text that is not UTF-8."""
    chunk = file.read(CHUNK_BYTES)
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
            chunk = file.read(CHUNK_BYTES)
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
