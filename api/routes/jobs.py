"""Create, list, read and cancel jobs; read what happened to one."""

import re
from collections.abc import Iterator
from typing import Annotated, BinaryIO, TypeVar

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from api.dependencies import Caller, CallerDep, ServicesDep
from api.schemas import (
    CursorPage,
    EventRead,
    JobRead,
    LogChunkRead,
    MetricRead,
    Page,
    QueuePlace,
    read_event,
    read_job,
    read_log_chunk,
    read_metric,
)
from jobs import lifecycle, repository
from jobs.errors import InvalidRequest, NotFound
from jobs.models import Job
from jobs.spec import JobSpec
from jobs.status import JobStatus
from jobs.store import CHUNK_BYTES
from jobs.submission import submit_job
from jobs.task_queue import Queue

router = APIRouter(prefix="/jobs", tags=["jobs"])

_METADATA_FILTER = re.compile(r"metadata\[(.+)\]")
_MAX_SEQ = 2**63 - 1

After = Annotated[int, Query(ge=0, le=_MAX_SEQ, description="The `cursor` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000)]

_CREATE_EXAMPLE = {
    "requestBody": {
        "content": {
            "application/json": {
                "examples": {
                    "smallest": {
                        "summary": "Everything by default",
                        "value": {"model": "tiny-llama", "dataset": {"id": "ds_01JD0Q3K7M8V6Y2C5W9X4ZT1RA"}},
                    },
                    "tuned": {
                        "summary": "QLoRA with a held-out share",
                        "value": {
                            "name": "cardiology-qa",
                            "model": "tiny-llama",
                            "dataset": {"id": "ds_01JD0Q3K7M8V6Y2C5W9X4ZT1RA"},
                            "validation": {"fraction": 0.05},
                            "training": {"max_steps": 200, "quantization": "4bit", "lora": {"r": 32, "alpha": 64}},
                            "metadata": {"team": "cardiology"},
                        },
                    },
                }
            }
        }
    }
}


@router.post("", status_code=201, summary="Create a job", openapi_extra=_CREATE_EXAMPLE)
def create_job(
    spec: JobSpec,
    caller: CallerDep,
    services: ServicesDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    dry_run: Annotated[bool, Query(description="Reserved; only false for now.")] = False,
) -> JobRead:
    """A 201 means that the job is in the table. The same Idempotency-Key with the same body gives the same job."""
    if dry_run:
        raise InvalidRequest("not_available", "dry_run: planning is not available yet", param="dry_run")
    job = submit_job(caller.session, caller.identity, services.settings, spec, idempotency_key)
    services.doorbell.ring_after_commit(caller.session, Queue.TRAIN)
    return read_job(job, queue=_describe_place(job))


@router.get("", summary="List jobs, newest first")
def list_jobs(
    request: Request,
    caller: CallerDep,
    status: JobStatus | None = None,
    model: str | None = None,
    limit: Limit = 20,
    after: Annotated[str | None, Query(description="The last job's id of the page before.")] = None,
) -> Page[JobRead]:
    """Filters: `status`, `model`, and `metadata[key]=value` any number of times."""
    labels = {m[1]: v for k, v in request.query_params.multi_items() if (m := _METADATA_FILTER.fullmatch(k))}
    jobs = repository.list_jobs(caller.session, limit=limit + 1, after=after, status=status, model=model, labels=labels)
    return Page(data=[read_job(job, queue=_describe_place(job)) for job in jobs[:limit]], has_more=len(jobs) > limit)


@router.get("/{job_id}", summary="One job, the whole truth")
def get_job(job_id: str, caller: CallerDep) -> JobRead:
    job = repository.get_job(caller.session, job_id)
    if job.status == JobStatus.QUEUED:
        return read_job(job, queue=_find_place(caller, job))
    adapter = repository.find_adapter(caller.session, job_id) if job.status == JobStatus.SUCCEEDED else None
    return read_job(job, queue=_describe_place(job), adapter=adapter)


@router.post("/{job_id}/cancel", status_code=202, summary="Cancel a job")
def cancel_job(job_id: str, caller: CallerDep) -> JobRead:
    """At once while it waits; a running job's processes are ended first. 409 when it is final already."""
    return read_job(lifecycle.request_cancel(caller.session, job_id))


@router.get("/{job_id}/logs", summary="The trainer's output")
def list_logs(job_id: str, caller: CallerDep, after: After = 0, limit: Limit = 100) -> CursorPage[LogChunkRead]:
    """Chunks of whole lines, up to 64 KiB each."""
    repository.get_job(caller.session, job_id)
    chunks = repository.list_log_chunks(caller.session, job_id, after=after, limit=limit + 1)
    return _page([read_log_chunk(chunk) for chunk in chunks], after, limit)


@router.get("/{job_id}/metrics", summary="Numbers of the training steps")
def list_metrics(job_id: str, caller: CallerDep, after: After = 0, limit: Limit = 1000) -> CursorPage[MetricRead]:
    repository.get_job(caller.session, job_id)
    metrics = repository.list_metrics(caller.session, job_id, after=after, limit=limit + 1)
    return _page([read_metric(metric) for metric in metrics], after, limit)


@router.get("/{job_id}/events", summary="What happened, with reasons")
def list_events(job_id: str, caller: CallerDep, after: After = 0, limit: Limit = 100) -> CursorPage[EventRead]:
    repository.get_job(caller.session, job_id)
    events = repository.list_events(caller.session, job_id, after=after, limit=limit + 1)
    return _page([read_event(event) for event in events], after, limit)


@router.get("/{job_id}/adapter", summary="Download the adapter", response_class=StreamingResponse)
def download_adapter(job_id: str, caller: CallerDep, services: ServicesDep) -> StreamingResponse:
    """A `.tar.gz` of adapter_config.json, adapter_model.safetensors, the tokenizer and the verification."""
    job = repository.get_job(caller.session, job_id)
    adapter = repository.find_adapter(caller.session, job_id)
    if adapter is None:
        raise NotFound("adapter_not_found", f"the job is {job.status}; only a succeeded job has an adapter")
    file = services.store.open(adapter.store_key)
    headers = {
        "Content-Length": str(adapter.num_bytes),
        "Content-Disposition": f'attachment; filename="{job_id}.tar.gz"',
        "ETag": f'"{adapter.sha256}"',
    }
    return StreamingResponse(_read_chunks(file), media_type="application/gzip", headers=headers)


def _read_chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


Read = TypeVar("Read", LogChunkRead, MetricRead, EventRead)


def _page(rows: list[Read], after: int, limit: int) -> CursorPage[Read]:
    rows, has_more = rows[:limit], len(rows) > limit
    return CursorPage(data=rows, has_more=has_more, cursor=rows[-1].seq if rows else after)


def _describe_place(job: Job) -> QueuePlace | None:
    if job.status == JobStatus.VALIDATING:
        return QueuePlace(position=None, reason="waits for the check of its dataset")
    if job.status == JobStatus.QUEUED:
        return QueuePlace(position=None, reason="waits for a free worker")
    return None


def _find_place(caller: Caller, job: Job) -> QueuePlace:
    largest = repository.find_largest_worker(caller.session)
    if largest is None:
        reason = "no worker is running"
    elif largest < job.num_gpus:
        reason = f"no running worker has {job.num_gpus} GPUs; the largest has {largest}"
    else:
        reason = "waits for a free worker"
    return QueuePlace(position=repository.get_queue_position(caller.session, job.id), reason=reason)
