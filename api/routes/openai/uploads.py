"""Files that come in parts; put together they are datasets like any other."""

import hashlib
import io
from collections.abc import Sequence
from typing import Annotated, Any, BinaryIO, Literal, cast

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from api.dependencies import Caller, IdentityDep, Services, ServicesDep, TransactionDep
from api.idempotency import SendingDep, claim
from api.pages import ReadModel
from api.routes.datasets import store_dataset
from api.routes.openai.files import build_new_dataset, check_purpose
from api.routes.openai.schemas import FileObject, read_file, to_seconds
from jobs import idempotency, repository
from jobs.database import tenant_transaction
from jobs.errors import Conflict, InvalidRequest, NotFound, TooLarge
from jobs.idempotency import Sending
from jobs.ids import new_id
from jobs.models import Dataset, Upload, UploadPart
from jobs.quotas import check_storage
from jobs.repository import Identity
from jobs.status import UploadStatus
from jobs.store import CHUNK_BYTES, Store, StoreUnavailable

router = APIRouter(prefix="/uploads")

PART_BYTES = 64 << 20
_TIMES_SENT = 2
"""Parts may be sent again, but not for ever."""
_PART_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


class UploadObject(ReadModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: UploadStatus
    file: FileObject | None = None
    """Once it is completed."""


class PartObject(ReadModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class UploadBody(_Body):
    bytes: Annotated[int, Field(gt=0)]
    """Of the whole file."""
    filename: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
    mime_type: str
    """Not used: a file's type is told by its content."""
    purpose: str
    medtune: dict[str, str] = {}
    """Fields of `POST /datasets`, such as `phi_policy`."""


class CompleteBody(_Body):
    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    """In the order of the file."""
    md5: Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")] | None = None
    """Of the whole file."""


@router.post("", summary="Begin an upload in parts", response_model=UploadObject)
def create_upload(
    body: UploadBody, transaction: TransactionDep, services: ServicesDep, sending: SendingDep
) -> Response:
    """It expires after an hour. Until then what it announces counts as stored."""
    with transaction as caller:
        check_purpose(body.purpose)
        build_new_dataset(services, caller.identity, io.BytesIO(), body.filename, body.medtune)
        limit = services.settings.max_upload_bytes
        if body.bytes > limit:
            raise TooLarge("file_too_large", f"bytes: more than {limit} bytes", param="bytes", max_bytes=limit)
        first = claim(caller, sending, body.model_dump_json())
        if (answer := first.answer) is None:
            check_storage(caller.session, caller.identity, services.settings, body.bytes, param="bytes")
            upload = _create(caller, body)
            answer = read_upload(upload).model_dump_json()
            first.keep(answer)
    return Response(answer, media_type="application/json")


@router.post("/{upload_id}/parts", summary="Send a part", response_model=PartObject, openapi_extra=_PART_FORM)
async def create_upload_part(
    upload_id: str, request: Request, identity: IdentityDep, services: ServicesDep, sending: SendingDep
) -> Response:
    """Up to 64 MB. Parts may come in any order, also several at once."""
    async with request.form(max_files=1, max_fields=1) as form:
        data = form.get("data")
        if not isinstance(data, UploadFile):
            raise InvalidRequest("file_missing", "data: send the part in multipart/form-data", param="data")
        answer = await run_in_threadpool(_store_part, services, identity, upload_id, data.file, sending)
    return Response(answer, media_type="application/json")


@router.post("/{upload_id}/complete", summary="Put the parts together")
def complete_upload(upload_id: str, body: CompleteBody, identity: IdentityDep, services: ServicesDep) -> UploadObject:
    """The file is the parts in the order of `part_ids`; their bytes must be as many as were announced.

    Of an upload that is completed already, the answer is its file.
    """
    try:
        if (completed := _find_completed(services, identity, upload_id)) is None:
            completed = _complete(services, identity, upload_id, body)
    except (Conflict, StoreUnavailable, OSError):
        # Closed, and its parts deleted, while this one read them; by the same request, perhaps, sent twice.
        if (completed := _find_completed(services, identity, upload_id)) is None:
            raise
    return completed


def _find_completed(services: Services, identity: Identity, upload_id: str) -> UploadObject | None:
    """Raises NotFound; Conflict where it is closed without a file."""
    with tenant_transaction(services.sessions, identity.tenant_id) as session:
        upload = repository.get_upload(session, upload_id)
        if upload.status != UploadStatus.COMPLETED:
            _lock_pending(session, upload_id)
            return None
        dataset = repository.find_dataset(session, upload.dataset_id)
        return read_upload(upload, None if dataset is None else read_file(dataset))


def _complete(services: Services, identity: Identity, upload_id: str, body: CompleteBody) -> UploadObject:
    with tenant_transaction(services.sessions, identity.tenant_id) as session:
        upload = repository.get_upload(session, upload_id)
        known = {part.id: part for part in repository.list_upload_parts(session, upload_id)}
    _check_parts(upload, body, known)
    with _Parts(services.store, [known[part_id].store_key for part_id in body.part_ids]) as file:

        def close(session: Session) -> None:
            if body.md5 is not None and file.md5.hexdigest() != body.md5.lower():
                raise InvalidRequest("md5_mismatch", "md5: the parts in this order have another", param="md5")
            _lock_pending(session, upload_id).status = UploadStatus.COMPLETED
            session.flush()

        def finish(session: Session, dataset: Dataset) -> str:
            closed = repository.get_upload(session, upload_id)
            closed.dataset_id = dataset.id
            return read_upload(closed, read_file(dataset)).model_dump_json()

        new = build_new_dataset(services, identity, cast(BinaryIO, file), upload.filename, upload.options)
        # An upload is completed once: it needs no key of its own.
        answer = store_dataset(services, identity, new, Sending("complete"), finish, close)
    services.store.sweep(upload.store_folder)
    return UploadObject.model_validate_json(answer)


@router.post("/{upload_id}/cancel", summary="Cancel an upload")
def cancel_upload(upload_id: str, transaction: TransactionDep, services: ServicesDep) -> UploadObject:
    with transaction as caller:
        upload = _lock_pending(caller.session, upload_id)
        upload.status = UploadStatus.CANCELLED
    services.store.sweep(upload.store_folder)
    return read_upload(upload)


def read_upload(upload: Upload, file: FileObject | None = None) -> UploadObject:
    return UploadObject(
        id=upload.id,
        bytes=upload.num_bytes,
        created_at=to_seconds(upload.created_at),
        expires_at=to_seconds(upload.expires_at),
        filename=upload.filename,
        status=upload.status,
        file=file,
    )


def _create(caller: Caller, body: UploadBody) -> Upload:
    upload = Upload(
        id=new_id("upload"),
        tenant_id=caller.identity.tenant_id,
        filename=body.filename,
        num_bytes=body.bytes,
        options=body.medtune,
        created_by=caller.identity.key_id,
    )
    caller.session.add(upload)
    caller.session.flush()
    caller.object_id = upload.id
    return upload


def _store_part(services: Services, identity: Identity, upload_id: str, file: BinaryIO, sending: Sending) -> str:
    """The answer. Bytes first, then the row; if either fails, or the same was sent before, nothing stays of it."""
    with tenant_transaction(services.sessions, identity.tenant_id) as session:
        folder = _lock_pending(session, upload_id).store_folder
    part_id = new_id("part")
    store_key = f"{folder}/{part_id}"
    with services.store.writing(store_key) as writer:
        while chunk := file.read(CHUNK_BYTES):
            if writer.num_bytes + len(chunk) > PART_BYTES:
                raise TooLarge("part_too_large", f"data: more than {PART_BYTES} bytes", param="data")
            writer.write(chunk)
    try:
        with tenant_transaction(services.sessions, identity.tenant_id) as session:
            first = idempotency.claim(session, identity, sending, writer.sha256)
            if first.answer is not None:
                services.store.delete(store_key)
                return first.answer
            upload = _lock_pending(session, upload_id)
            stored = sum(part.num_bytes for part in repository.list_upload_parts(session, upload_id))
            if stored + writer.num_bytes > _TIMES_SENT * upload.num_bytes:
                raise InvalidRequest("too_many_parts", "data: the parts are more than was announced", param="data")
            part = UploadPart(
                id=part_id,
                upload_id=upload_id,
                tenant_id=identity.tenant_id,
                num_bytes=writer.num_bytes,
                store_key=store_key,
            )
            session.add(part)
            session.flush()
            answer = PartObject(
                id=part_id, created_at=to_seconds(part.created_at), upload_id=upload_id
            ).model_dump_json()
            first.keep(answer)
    except BaseException:
        services.store.delete(store_key)
        raise
    return answer


def _lock_pending(session: Session, upload_id: str) -> Upload:
    """Raises NotFound, Conflict."""
    upload = repository.lock_upload(session, upload_id)
    if upload.status != UploadStatus.PENDING:
        raise Conflict("upload_is_closed", f"the upload is {upload.status}", status=upload.status)
    if repository.is_upload_over(session, upload_id):
        raise Conflict("upload_is_closed", "the upload has expired", status=UploadStatus.EXPIRED)
    return upload


def _check_parts(upload: Upload, body: CompleteBody, known: dict[str, UploadPart]) -> None:
    if missing := [part_id for part_id in body.part_ids if part_id not in known]:
        raise NotFound("part_not_found", f"there is no part {missing[0]!r} of this upload", param="part_ids")
    if len(set(body.part_ids)) < len(body.part_ids):
        raise InvalidRequest("part_named_twice", "part_ids: a part is named twice", param="part_ids")
    total = sum(known[part_id].num_bytes for part_id in body.part_ids)
    if total != upload.num_bytes:
        message = f"part_ids: these parts have {total} bytes, and {upload.num_bytes} were announced"
        raise InvalidRequest("upload_incomplete", message, param="part_ids")


class _Parts:
    """Objects of the store, read one after the other as one file."""

    def __init__(self, store: Store, store_keys: Sequence[str]) -> None:
        self._store = store
        self._store_keys = list(store_keys)
        self._open: BinaryIO | None = None
        self.md5 = hashlib.md5(usedforsecurity=False)

    def read(self, num_bytes: int) -> bytes:
        """Fewer only at the end."""
        found = bytearray()
        while len(found) < num_bytes:
            if self._open is None:
                if not self._store_keys:
                    break
                self._open = self._store.open(self._store_keys.pop(0))
            chunk = self._open.read(num_bytes - len(found))
            found += chunk
            if not chunk:
                self.close()
        self.md5.update(found)
        return bytes(found)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def __enter__(self) -> "_Parts":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
