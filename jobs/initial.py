"""The adapter that a job goes on from: whether it may, before it takes a GPU."""

from typing import Any

from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import Conflict, InvalidRequest, NotFound
from jobs.models import Job
from jobs.spec import InitialAdapter, JobSpec
from jobs.status import FINAL, AdapterState, FailureReason

_SHAPE = ("r", "alpha", "variant", "target_modules")


def resolve_initial(session: Session, spec: JobSpec) -> JobSpec:
    """With the job of the checkpoint named beside it: what it came from is known when the checkpoint is gone.

    Raises NotFound, Conflict; InvalidRequest for an adapter of another base or shape.
    """
    if spec.init_from is None:
        return spec
    job_id, checkpoint_id = spec.init_from.job, spec.init_from.checkpoint
    if checkpoint_id is not None:
        checkpoint = repository.get_checkpoint(session, checkpoint_id)
        if job_id not in (None, checkpoint.job_id):
            message = f"{checkpoint_id} is no checkpoint of {job_id}"
            raise NotFound("checkpoint_not_found", message, param="init_from.checkpoint")
        job_id = checkpoint.job_id
        _check_ended(repository.get_job(session, job_id))
    assert job_id is not None
    job = repository.keep_job(session, job_id)  # Else it could be deleted unseen.
    adapter = (
        repository.find_adapter(session, job_id) if checkpoint_id and job else repository.get_adapter(session, job_id)
    )
    if (adapter is not None and adapter.state == AdapterState.REJECTED) or _was_rejected(job):
        raise Conflict("init_from_rejected", f"what {job_id} learned was rejected; nothing may go on from it")
    if job is not None:
        model, training = job.model, {f"lora.{name}": value for name, value in job.spec["training"]["lora"].items()}
    else:  # Another tenant's, which is released: its job is not to be seen.
        assert adapter is not None
        model, training = adapter.model, (adapter.provenance or {}).get("training", {})
    _check_shape(spec, model, training)
    return spec.model_copy(update={"init_from": InitialAdapter(job=job_id, checkpoint=checkpoint_id)})


def _check_ended(job: Job) -> None:
    if job.status not in FINAL:
        message = f"the checkpoint's job is {job.status}, and may still remove it"
        raise Conflict("job_is_not_final", message, status=job.status, remedy="wait for its end, or cancel it")


def _was_rejected(job: Job | None) -> bool:
    return job is not None and (job.reason or {}).get("code") == FailureReason.SAFETY_REJECTED


def _check_shape(spec: JobSpec, model: str, training: dict[str, Any]) -> None:
    if model != spec.model:
        raise InvalidRequest(
            "init_from_other_base",
            f"the adapter that init_from names belongs to {model}, and the job trains {spec.model}",
            param="init_from",
            remedy=f"Train {model}, or leave init_from out.",
        )
    wanted = spec.training.lora.model_dump(mode="json")
    for name in _SHAPE:
        found = training.get(f"lora.{name}")
        if _sort(found) != _sort(wanted[name]):
            raise InvalidRequest(
                "init_from_mismatch",
                f"the adapter that init_from names has lora.{name} {found!r}, and the job {wanted[name]!r}",
                param=f"training.lora.{name}",
                remedy="Ask for the same shape, or leave init_from out.",
            )


def _sort(value: object) -> object:
    return sorted(value) if isinstance(value, list) else value
