"""Fine-tuning jobs as OpenAI's clients drive them."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.dependencies import Caller, ServicesDep, TransactionDep
from api.idempotency import SendingDep, claim
from api.routes.jobs import METADATA_FILTER
from api.routes.openai import ids
from api.routes.openai.events import list_job_events
from api.routes.openai.job_request import JobBody, build_job_spec, rename_param
from api.routes.openai.schemas import (
    FineTuningJob,
    JobCheckpoint,
    JobEvent,
    ListObject,
    build_list,
    read_checkpoint,
    read_fine_tuning_job,
)
from jobs import lifecycle, repository
from jobs.errors import MedtuneError
from jobs.submission import submit_job
from jobs.task_queue import Queue

router = APIRouter(prefix="/fine_tuning/jobs")

Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(description="The last item's id of the page before.")]


@router.post("", name="create_job", summary="Create a fine-tuning job", response_model=FineTuningJob)
def create_fine_tuning_job(
    body: JobBody, transaction: TransactionDep, services: ServicesDep, sending: SendingDep
) -> Response:
    """The same job as `POST /jobs` makes. Clients that send a request again by themselves make no second one."""
    with transaction as caller:
        first = claim(caller, sending, body.model_dump_json())
        if first.answer is not None:
            return Response(first.answer, media_type="application/json")
        try:
            spec = build_job_spec(body)
            job = submit_job(caller.session, caller.identity, services.settings, spec, idempotency_key=sending.key)
        except MedtuneError as error:
            rename_param(error, body)
            raise
        caller.object_id = job.id
        answer = read_fine_tuning_job(job, caller.identity.tenant_id).model_dump_json()
        first.keep(answer)
    services.doorbell.ring(Queue.TRAIN)
    return Response(answer, media_type="application/json")


@router.get("", name="list_jobs", summary="List fine-tuning jobs, newest first")
def list_fine_tuning_jobs(
    request: Request, transaction: TransactionDep, after: After = None, limit: Limit = 20
) -> ListObject[FineTuningJob]:
    """Filters: `metadata[key]=value` any number of times; `metadata=null` for those without any."""
    parameters = request.query_params.multi_items()
    labels = {match[1]: value for name, value in parameters if (match := METADATA_FILTER.fullmatch(name))}
    with transaction as caller:
        rows = repository.list_job_views(
            caller.session,
            limit=limit + 1,
            after=ids.read_cursor(after, "ftjob-", "job_"),
            labels=labels,
            without_labels=("metadata", "null") in parameters,
        )
        return build_list([read_fine_tuning_job(row, caller.identity.tenant_id) for row in rows], limit)


@router.get("/{fine_tuning_job_id}", name="get_job", summary="One fine-tuning job")
def get_fine_tuning_job(fine_tuning_job_id: str, transaction: TransactionDep) -> FineTuningJob:
    with transaction as caller:
        return _read(caller, ids.read_job_id(fine_tuning_job_id))


@router.post("/{fine_tuning_job_id}/cancel", name="cancel_job", summary="Cancel a fine-tuning job")
def cancel_fine_tuning_job(fine_tuning_job_id: str, transaction: TransactionDep) -> FineTuningJob:
    """At once while it waits; a running job's processes are ended first. 409 when it is final already."""
    with transaction as caller:
        caller.object_id = job_id = ids.read_job_id(fine_tuning_job_id)
        lifecycle.request_cancel(caller.session, job_id)
        return _read(caller, job_id)


@router.post("/{fine_tuning_job_id}/pause", name="pause_job", summary="Pause a fine-tuning job")
def pause_fine_tuning_job(fine_tuning_job_id: str, transaction: TransactionDep) -> FineTuningJob:
    """A running job is `paused` when its checkpoint is saved."""
    with transaction as caller:
        caller.object_id = job_id = ids.read_job_id(fine_tuning_job_id)
        lifecycle.request_pause(caller.session, job_id)
        return _read(caller, job_id)


@router.post("/{fine_tuning_job_id}/resume", name="resume_job", summary="Resume a paused fine-tuning job")
def resume_fine_tuning_job(
    fine_tuning_job_id: str, transaction: TransactionDep, services: ServicesDep
) -> FineTuningJob:
    """It goes on from its newest checkpoint. 409 when it is not paused."""
    with transaction as caller:
        caller.object_id = job_id = ids.read_job_id(fine_tuning_job_id)
        lifecycle.resume(caller.session, job_id)
        job = _read(caller, job_id)
    services.doorbell.ring(Queue.TRAIN)
    services.doorbell.ring(Queue.CHECK)
    return job


@router.get("/{fine_tuning_job_id}/events", name="list_events", summary="What happened, the newest first")
def list_fine_tuning_events(
    fine_tuning_job_id: str, transaction: TransactionDep, after: After = None, limit: Limit = 20
) -> ListObject[JobEvent]:
    """Messages, and the metrics of each step."""
    with transaction as caller:
        job_id = ids.read_job_id(fine_tuning_job_id)
        return build_list(list_job_events(caller.session, job_id, after=after, limit=limit + 1), limit)


@router.get("/{fine_tuning_job_id}/checkpoints", name="list_checkpoints", summary="Checkpoints, the newest first")
def list_fine_tuning_checkpoints(
    fine_tuning_job_id: str, transaction: TransactionDep, after: After = None, limit: Limit = 10
) -> ListObject[JobCheckpoint]:
    """Those in the store, from which the job can go on."""
    with transaction as caller:
        job = repository.get_job_view(caller.session, ids.read_job_id(fine_tuning_job_id))
        rows = repository.list_checkpoints(caller.session, job.id)
        found = [read_checkpoint(row, job, caller.identity.tenant_id) for row in rows]
    if after is not None:
        place = next((n for n, checkpoint in enumerate(found, 1) if checkpoint.id == after), None)
        if place is None:
            raise ids.refuse_cursor(after)
        found = found[place:]
    return build_list(found[: limit + 1], limit)


def _read(caller: Caller, job_id: str) -> FineTuningJob:
    return read_fine_tuning_job(repository.get_job_view(caller.session, job_id), caller.identity.tenant_id)
