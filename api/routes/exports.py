"""Adapters merged into their base, where the operator lets weights of bases leave the service."""

import datetime
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from api.dependencies import ServicesDep, TransactionDep
from api.pages import ReadModel
from api.routes.jobs import read_chunks, tell_content
from jobs import lifecycle, repository
from jobs.errors import Conflict, Forbidden
from jobs.models import Export
from jobs.settings import Settings
from jobs.status import ExportStatus
from jobs.task_queue import Queue

router = APIRouter(prefix="/jobs", tags=["adapters"])


class ExportReason(ReadModel):
    code: str
    message: str
    remedy: str


class ExportRead(ReadModel):
    object: Literal["export"] = "export"
    job: str
    status: ExportStatus
    reason: ExportReason | None
    """Why it failed."""
    bytes: int | None
    sha256: str | None
    """Of the archive."""
    created_at: datetime.datetime
    finished_at: datetime.datetime | None


@router.post("/{job_id}/export", status_code=202, summary="Merge a job's adapter into its base")
def create_export(job_id: str, transaction: TransactionDep, services: ServicesDep) -> ExportRead:
    """A worker does it when no job waits for it; asked again, it is the same one, and one that failed is tried anew.

    403 where the operator does not let weights of bases leave the service; 409 while nobody approved the adapter.
    """
    with transaction as caller:
        repository.get_job(caller.session, job_id)
        _check_allowed(services.settings)
        export = _read(lifecycle.request_export(caller.session, caller.identity, job_id))
    services.doorbell.ring(Queue.TRAIN)
    return export


@router.get("/{job_id}/export", summary="How far the merged model is")
def get_export(job_id: str, transaction: TransactionDep) -> ExportRead:
    with transaction as caller:
        repository.get_job(caller.session, job_id)
        return _read(repository.get_export(caller.session, job_id))


@router.get(
    "/{job_id}/export/model",
    summary="Download the merged model",
    response_class=StreamingResponse,
    responses=tell_content("application/x-tar"),
)
def download_export(job_id: str, transaction: TransactionDep, services: ServicesDep) -> StreamingResponse:
    """A `.tar` of a folder for any server of models: safetensors in bfloat16, configuration, tokenizer, README.

    409 while it is not ready, and when the adapter was rejected since; 403 as for the request.
    """
    with transaction as caller:
        adapter = repository.get_adapter(caller.session, job_id)
        _check_allowed(services.settings)
        export = repository.get_export(caller.session, job_id)
        lifecycle.check_exportable(adapter.state)
        if export.store_key is None:
            remedy = "wait until GET /jobs/{id}/export says ready"
            raise Conflict("export_is_not_ready", f"the merged model is {export.status}", remedy=remedy)
    headers = {
        "Content-Length": str(export.num_bytes),
        "Content-Disposition": f'attachment; filename="{export.job_id}-merged.tar"',
        "ETag": f'"{export.sha256}"',
    }
    chunks = read_chunks(services.store.open(export.store_key))
    return StreamingResponse(chunks, media_type="application/x-tar", headers=headers)


def _check_allowed(settings: Settings) -> None:
    if not settings.allow_merged_export:
        raise Forbidden(
            "merged_export_not_allowed",
            "weights of base models do not leave this service; adapters do",
            remedy="serve the adapter beside its base, or ask the operator to set MEDTUNE_ALLOW_MERGED_EXPORT",
        )


def _read(export: Export) -> ExportRead:
    return ExportRead(
        job=export.job_id,
        status=export.status,
        reason=None if export.reason is None else ExportReason.model_validate(export.reason),
        bytes=export.num_bytes,
        sha256=export.sha256,
        created_at=export.created_at,
        finished_at=export.finished_at,
    )
