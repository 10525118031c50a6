"""From a client's wish to a job's row: what is refused here never takes a GPU."""

import hashlib
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Row
from sqlalchemy.orm import Session

from jobs import lifecycle, repository
from jobs.errors import Conflict, InvalidRequest, NotFound
from jobs.ids import new_id
from jobs.model_registry import get_model
from jobs.models import Job, Json
from jobs.planning import JobPlan, plan_job
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import FINAL, DatasetStatus
from trainer_core.run_dir import ModelSource


def submit_job(
    session: Session,
    identity: Identity,
    settings: Settings,
    spec: JobSpec,
    *,
    idempotency_key: str | None = None,
    parent_id: str | None = None,
) -> Row[Any]:
    """The view of the new job; or of the one that the same key with the same body made before.

    Raises InvalidRequest, NotFound, LimitReached.
    """
    if idempotency_key is not None:
        earlier = repository.find_job_by_idempotency_key(session, identity.tenant_id, idempotency_key)
        if earlier is not None:
            _check_replay(earlier, spec)
            return repository.get_job_view(session, earlier.id)
    model, facts = _check_request(session, settings, spec)
    plan_job(spec, model, facts)  # refuses what could not train
    lifecycle.check_queue_limit(session, identity.key_id, identity.max_queued)
    values = {
        "id": new_id("job"),
        "tenant_id": identity.tenant_id,
        "name": spec.name,
        "model": spec.model,
        "dataset_id": spec.dataset.id,
        "validation_dataset_id": spec.validation and spec.validation.id,
        "spec": spec.model_dump(mode="json"),
        "priority": spec.priority,
        "num_gpus": facts.num_gpus,
        "metadata": spec.metadata,
        "idempotency_key": idempotency_key,
        "request_hash": _hash(spec) if idempotency_key else None,
        "parent_id": parent_id,
        "created_by": identity.key_id,
    }
    is_checked = DatasetStatus.VALIDATING not in (facts.dataset_status, facts.validation_status)
    return lifecycle.create_job(session, values, is_dataset_checked=is_checked, largest_worker=facts.largest_worker)


def plan_submission(session: Session, settings: Settings, spec: JobSpec) -> JobPlan:
    """What `submit_job` would queue, and what it would take. Raises what that would raise."""
    model, facts = _check_request(session, settings, spec)
    throughput = repository.find_throughput(
        session, model=spec.model, quantization=spec.training.quantization, num_gpus=facts.num_gpus
    )
    return plan_job(spec, model, facts, throughput)


def retry_job(session: Session, identity: Identity, settings: Settings, job_id: str, changes: Json) -> Row[Any]:
    """A new job like a final one, with `changes` to its request merged in (RFC 7396); the old one is its parent.

    Raises what `submit_job` raises, and Conflict.
    """
    parent = repository.get_job(session, job_id)
    if parent.status not in FINAL:
        remedy = "wait for its end, or cancel it"
        raise Conflict("job_is_not_final", f"the job is {parent.status}", status=parent.status, remedy=remedy)
    try:
        spec = JobSpec.model_validate(merge_patch(parent.spec, changes))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "body"
        code = "unknown_field" if first["type"] == "extra_forbidden" else "invalid_field"
        raise InvalidRequest(code, f"{field}: {first['msg']}", param=field) from None
    return submit_job(session, identity, settings, spec, parent_id=parent.id)


def merge_patch(target: Json, patch: Json) -> Json:
    """JSON Merge Patch, RFC 7396: null removes, objects merge, the rest replaces."""
    merged = dict(target)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            old = merged.get(name)
            merged[name] = merge_patch(old if isinstance(old, dict) else {}, value)
        else:
            merged[name] = value
    return merged


def _check_request(session: Session, settings: Settings, spec: JobSpec) -> tuple[ModelSource, Row[Any]]:
    """The model, and the row of `repository.get_submission_facts`. Raises InvalidRequest, NotFound."""
    model = get_model(settings, spec.model)
    if spec.training.early_stopping is not None and spec.validation is None:
        raise InvalidRequest(
            "early_stopping_needs_validation",
            "early stopping looks at the validation loss, and the job holds no rows out",
            param="training.early_stopping",
            remedy="Give validation a fraction or a dataset, or leave early_stopping out.",
        )
    validation_id = spec.validation.id if spec.validation else None
    facts = repository.get_submission_facts(session, spec.dataset.id, validation_id, spec.resources.gpus)
    _check_dataset(spec.dataset.id, facts.dataset_status, "dataset.id")
    if validation_id is not None:
        _check_dataset(validation_id, facts.validation_status, "validation.id")
    return model, facts


def _check_dataset(dataset_id: str, status: str | None, param: str) -> None:
    if status is None:
        raise NotFound("dataset_not_found", f"there is no dataset {dataset_id!r}", param=param)
    if status == DatasetStatus.REJECTED:
        raise InvalidRequest(
            "dataset_rejected",
            f"dataset {dataset_id} did not pass its check; read GET /datasets/{dataset_id}/report",
            param=param,
        )


def _check_replay(job: Job, spec: JobSpec) -> None:
    if job.request_hash != _hash(spec):
        raise InvalidRequest(
            "idempotency_key_reused",
            "this Idempotency-Key was used with another body; take a new key for a new job",
            param="Idempotency-Key",
        )


def _hash(spec: JobSpec) -> str:
    return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
