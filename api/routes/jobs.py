"""Create, list, read, pause, resume, cancel, retry and delete jobs; read what happened to one."""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, TypeVar

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import Response, StreamingResponse

from api.dependencies import ServicesDep, Transaction, TransactionDep
from api.free_json import FreeJson
from api.history_schemas import (
    AttemptRead,
    CheckpointRead,
    EventRead,
    JobRowsRead,
    LogChunkRead,
    MetricRead,
    read_attempt,
    read_checkpoint,
    read_event,
    read_log_chunk,
    read_metric,
)
from api.idempotency import SendingDep, claim
from api.pages import CursorPage, Page
from api.plan_schemas import PlanRead, read_plan
from api.routes.deletions import DeletionRead, tell_deletion
from api.safety_schemas import SafetyRoundRead, read_safety_round
from api.schemas import JobRead, read_job
from jobs import lifecycle, repository
from jobs.errors import Conflict
from jobs.spec import JobSpec
from jobs.status import JobStatus
from jobs.store import CHUNK_BYTES
from jobs.submission import check_priority, plan_submission, retry_job, submit_job
from jobs.task_queue import Queue

router = APIRouter(prefix="/jobs", tags=["jobs"])

METADATA_FILTER = re.compile(r"metadata\[(.+)\]", re.DOTALL)
_MAX_SEQ = 2**63 - 1


def tell_content(media_type: str) -> dict[int | str, dict[str, Any]]:
    """For the description of the API: an answer of bytes, and no JSON."""
    return {200: {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}}


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


@router.post(
    "",
    status_code=201,
    summary="Create a job",
    response_model=JobRead,
    responses={200: {"model": PlanRead, "description": "The plan, with `dry_run=true`"}},
    openapi_extra=_CREATE_EXAMPLE,
)
def create_job(
    spec: JobSpec,
    transaction: TransactionDep,
    services: ServicesDep,
    sending: SendingDep,
    dry_run: Annotated[bool, Query(description="Only tell what the job would take; queue nothing.")] = False,
) -> Response:
    """A 201 means that the job is in the table. The same Idempotency-Key with the same body gives the same answer."""
    with transaction as caller:
        if dry_run:
            check_priority(caller.identity, spec)
            return _respond(read_plan(spec, plan_submission(caller.session, services.settings, spec)))
        first = claim(caller, sending, spec.model_dump_json())
        if first.answer is not None:
            return _respond(first.answer, 201)
        job = submit_job(caller.session, caller.identity, services.settings, spec, idempotency_key=sending.key)
        caller.object_id = job.id
        answer = read_job(job).model_dump_json()
        first.keep(answer)
    if job.status == JobStatus.VALIDATING:  # Perhaps for a reference of its own.
        services.doorbell.ring(Queue.CHECK)
    services.doorbell.ring(Queue.TRAIN)
    return _respond(answer, 201)


@router.get("", summary="List jobs, newest first")
def list_jobs(
    request: Request,
    transaction: TransactionDep,
    status: JobStatus | None = None,
    model: str | None = None,
    limit: Limit = 20,
    after: Annotated[str | None, Query(description="The last job's id of the page before.")] = None,
) -> Page[JobRead]:
    """Filters: `status`, `model`, and `metadata[key]=value` any number of times."""
    labels = {m[1]: v for k, v in request.query_params.multi_items() if (m := METADATA_FILTER.fullmatch(k))}
    with transaction as caller:
        jobs = repository.list_job_views(
            caller.session, limit=limit + 1, after=after, status=status, model=model, labels=labels
        )
    return Page(data=[read_job(job) for job in jobs[:limit]], has_more=len(jobs) > limit)


@router.get("/{job_id}", summary="One job, the whole truth", response_model=JobRead)
def get_job(job_id: str, transaction: TransactionDep) -> Response:
    return _respond(load_job(job_id, transaction))


def load_job(job_id: str, transaction: Transaction) -> JobRead:
    """Raises NotAuthenticated, NotFound."""
    with transaction as caller:
        job = repository.get_job_view(caller.session, job_id)
    return read_job(job)


@router.post("/{job_id}/cancel", status_code=202, summary="Cancel a job")
def cancel_job(job_id: str, transaction: TransactionDep) -> JobRead:
    """At once while it waits; a running job's processes are ended first. 409 when it is final already."""
    with transaction as caller:
        lifecycle.request_cancel(caller.session, job_id)
        return read_job(repository.get_job_view(caller.session, job_id))


@router.delete("/{job_id}", summary="Delete a job that ended, with its logs and files")
def delete_job(job_id: str, transaction: TransactionDep, services: ServicesDep) -> DeletionRead:
    """At once nobody finds it any more; a worker then deletes its files, and `GET /deletions/{id}` says when all are
    gone. What stays is the record, and the audit log.

    409 while it is not final, while an unfinished job goes on from it, or when its adapter is released.
    """
    with transaction as caller:
        deletion = tell_deletion(caller, lifecycle.delete_job(caller.session, caller.identity, job_id))
    services.doorbell.ring(Queue.CHECK)
    return deletion


@router.post("/{job_id}/pause", status_code=202, summary="Pause a job")
def pause_job(job_id: str, transaction: TransactionDep) -> JobRead:
    """At once while it waits; a running job saves a checkpoint, ends, and lets go of its GPUs.

    409 when it is final or being stopped.
    """
    with transaction as caller:
        lifecycle.request_pause(caller.session, job_id)
        return read_job(repository.get_job_view(caller.session, job_id))


@router.post("/{job_id}/resume", summary="Resume a paused job")
def resume_job(job_id: str, transaction: TransactionDep, services: ServicesDep) -> JobRead:
    """It waits for a worker again, and goes on from its newest checkpoint. 409 when it is not paused."""
    with transaction as caller:
        lifecycle.resume(caller.session, job_id)
        job = read_job(repository.get_job_view(caller.session, job_id))
    services.doorbell.ring(Queue.TRAIN)
    services.doorbell.ring(Queue.CHECK)
    return job


@router.post("/{job_id}/retry", status_code=201, summary="Make a new job of a final one", response_model=JobRead)
def retry_final_job(
    job_id: str,
    transaction: TransactionDep,
    services: ServicesDep,
    sending: SendingDep,
    changes: Annotated[FreeJson | None, Body(examples=[{"training": {"micro_batch_size": 1}}])] = None,
) -> Response:
    """The new job has the same request, and the old one as its `parent`; it starts from the first step.

    The body, which may be missing, is merged into the request as a JSON merge patch (RFC 7396): null takes a field back
    to its default. 409 when the old job is not final.
    """
    with transaction as caller:
        first = claim(caller, sending, json.dumps(changes or {}, sort_keys=True))
        if first.answer is not None:
            return _respond(first.answer, 201)
        job = retry_job(caller.session, caller.identity, services.settings, job_id, changes or {})
        caller.object_id = job.id
        answer = read_job(job).model_dump_json()
        first.keep(answer)
    services.doorbell.ring(Queue.TRAIN)
    return _respond(answer, 201)


@router.get("/{job_id}/provenance", summary="With what a job's adapter was made")
def get_provenance(job_id: str, transaction: TransactionDep) -> dict[str, Any]:
    """Base, datasets, every hyper-parameter, the plan, packages, code and hardware: what to make it again with.

    404 while there is no adapter; `provenance` is null for one that an older version made.
    """
    with transaction as caller:
        adapter = repository.get_adapter(caller.session, job_id)
        job = repository.get_job(caller.session, job_id)
    return {"object": "provenance", "id": job_id, "spec": job.spec, "provenance": adapter.provenance}


@router.get("/{job_id}/rows", summary="How a job's rows look to its model, with a sample")
def get_rows(job_id: str, transaction: TransactionDep) -> JobRowsRead:
    """Token lengths, what was cut or left out, and the first rows as the model reads them, with the parts that are
    trained. It is there as soon as the rows are prepared, before the first step; 409 until then.
    """
    with transaction as caller:
        repository.get_job(caller.session, job_id)
        rows = repository.find_rows(caller.session, job_id)
        if rows is None:
            raise Conflict("rows_not_prepared", "the rows are not prepared yet; a worker does it when the job starts")
        return JobRowsRead(id=job_id, attempt=rows.attempt, **rows.report)


@router.get("/{job_id}/attempts", summary="How each attempt ended, the newest first")
def list_attempts(job_id: str, transaction: TransactionDep) -> Page[AttemptRead]:
    """Each worker that took the job, and the class and reason of its attempt's end."""
    with transaction as caller:
        repository.get_job(caller.session, job_id)
        attempts = repository.list_attempts(caller.session, job_id)
        return Page(data=[read_attempt(attempt) for attempt in attempts], has_more=False)


@router.get("/{job_id}/checkpoints", summary="Checkpoints in the store, the newest first")
def list_checkpoints(job_id: str, transaction: TransactionDep) -> Page[CheckpointRead]:
    """Those from which the job can go on, with the metrics of their steps."""
    with transaction as caller:
        repository.get_job(caller.session, job_id)
        checkpoints = repository.list_checkpoints(caller.session, job_id)
        return Page(data=[read_checkpoint(checkpoint) for checkpoint in checkpoints], has_more=False)


@router.get("/{job_id}/logs", summary="The trainer's output")
def list_logs(
    job_id: str, transaction: TransactionDep, after: After = 0, limit: Limit = 100
) -> CursorPage[LogChunkRead]:
    """Chunks of whole lines, up to 64 KiB each."""
    with transaction as caller:
        chunks = repository.list_log_chunks(caller.session, job_id, after=after, limit=limit + 1)
    return _page([read_log_chunk(chunk) for chunk in chunks], after, limit)


@router.get("/{job_id}/metrics", summary="Numbers of the training steps")
def list_metrics(
    job_id: str, transaction: TransactionDep, after: After = 0, limit: Limit = 1000
) -> CursorPage[MetricRead]:
    with transaction as caller:
        metrics = repository.list_metrics(caller.session, job_id, after=after, limit=limit + 1)
    return _page([read_metric(metric) for metric in metrics], after, limit)


@router.get("/{job_id}/events", summary="What happened, with reasons")
def list_events(
    job_id: str, transaction: TransactionDep, after: After = 0, limit: Limit = 100
) -> CursorPage[EventRead]:
    with transaction as caller:
        events = repository.list_events(caller.session, job_id, after=after, limit=limit + 1)
    return _page([read_event(event) for event in events], after, limit)


@router.get("/{job_id}/safety", summary="What the safety checks found")
def list_safety(
    job_id: str, transaction: TransactionDep, after: After = 0, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> CursorPage[SafetyRoundRead]:
    """Round by round; a round that could not be made is one that is not ok."""
    with transaction as caller:
        repository.get_job(caller.session, job_id)
        rounds = repository.list_safety_rounds(caller.session, job_id, after=after, limit=limit + 1)
        return _page([read_safety_round(row) for row in rounds], after, limit)


@router.get(
    "/{job_id}/adapter",
    summary="Download the adapter",
    response_class=StreamingResponse,
    responses=tell_content("application/gzip"),
)
def download_adapter(job_id: str, transaction: TransactionDep, services: ServicesDep) -> StreamingResponse:
    """A `.tar.gz` of weights, configuration, tokenizer, chat template, verification, model card (README.md), bill of
    materials, manifest and signature; `medtune verify` checks it."""
    with transaction as caller:
        adapter = repository.get_adapter(caller.session, job_id)
    file = services.store.open(adapter.store_key)
    headers = {
        "Content-Length": str(adapter.num_bytes),
        "Content-Disposition": f'attachment; filename="{job_id}.tar.gz"',
        "ETag": f'"{adapter.sha256}"',
    }
    return StreamingResponse(read_chunks(file), media_type="application/gzip", headers=headers)


def _respond(content: JobRead | PlanRead | str, status_code: int = 200) -> Response:
    """What is polled most is written here, in the request's thread, and not once more checked by the framework."""
    text = content if isinstance(content, str) else content.model_dump_json()
    return Response(text, status_code, media_type="application/json")


def read_chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


Read = TypeVar("Read", LogChunkRead, MetricRead, EventRead, SafetyRoundRead)


def _page(rows: list[Read], after: int, limit: int) -> CursorPage[Read]:
    rows, has_more = rows[:limit], len(rows) > limit
    return CursorPage(data=rows, has_more=has_more, cursor=rows[-1].seq if rows else after)
