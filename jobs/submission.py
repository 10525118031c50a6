"""From a client's wish to a job's row: what is refused here never takes a GPU."""

from typing import Any

from pydantic import ValidationError
from sqlalchemy import Row
from sqlalchemy.orm import Session

from jobs import lifecycle, repository
from jobs.errors import Conflict, Forbidden, InvalidRequest, NotFound
from jobs.ids import new_id
from jobs.initial import resolve_initial
from jobs.models import Json
from jobs.planning import JobPlan, get_model_facts, plan_job
from jobs.quotas import check_tenant_queue
from jobs.references import create_referenced_dataset, parse_reference
from jobs.repository import Identity
from jobs.scopes import Scope
from jobs.settings import Settings
from jobs.spec import DatasetReference, JobSpec, ValidationSpec
from jobs.status import FINAL, DatasetStatus
from trainer_core.planning.model_facts import ModelFacts


def submit_job(
    session: Session,
    identity: Identity,
    settings: Settings,
    spec: JobSpec,
    *,
    idempotency_key: str | None = None,
    parent_id: str | None = None,
) -> Row[Any]:
    """The view of the new job. Raises InvalidRequest, NotFound, LimitReached."""
    check_priority(identity, spec)
    model_facts, facts = _check_request(session, settings, spec)
    spec = resolve_initial(session, spec)
    plan_job(spec, model_facts, facts)  # refuses what could not train
    check_tenant_queue(session, identity, settings)
    lifecycle.check_queue_limit(session, identity.key_id, identity.max_queued)
    has_references = bool(spec.dataset.uri or (spec.validation and spec.validation.uri))
    spec = _resolve_references(session, identity, settings, spec)
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
        "parent_id": parent_id,
        "created_by": identity.key_id,
    }
    is_checked = not has_references and DatasetStatus.VALIDATING not in (facts.dataset_status, facts.validation_status)
    return lifecycle.create_job(session, values, is_dataset_checked=is_checked, largest_worker=facts.largest_worker)


def check_priority(identity: Identity, spec: JobSpec) -> None:
    """Priorities count before the turns of keys, across all tenants: who may pass others by is the operator's to say.

    Raises Forbidden.
    """
    if spec.priority > 0 and not identity.may(Scope.ADMIN):
        raise Forbidden(
            "priority_needs_admin",
            "a priority above 0 goes before other tenants' jobs, which takes a key with the scope admin",
            param="priority",
            scope=Scope.ADMIN,
            remedy="Leave priority out, or ask the operator.",
        )


def plan_submission(session: Session, settings: Settings, spec: JobSpec) -> JobPlan:
    """What `submit_job` would queue, and what it would take. Raises what that would raise."""
    model_facts, facts = _check_request(session, settings, spec)
    spec = resolve_initial(session, spec)
    throughput = repository.find_throughput(
        session, model=spec.model, quantization=spec.training.quantization, num_gpus=facts.num_gpus
    )
    return plan_job(spec, model_facts, facts, throughput)


def retry_job(session: Session, identity: Identity, settings: Settings, job_id: str, changes: Json) -> Row[Any]:
    """A new job like a final one, with `changes` to its request merged in (RFC 7396); the old one is its parent.

    Raises what `submit_job` raises, and Conflict.
    """
    parent = repository.get_job(session, job_id)
    if parent.status not in FINAL:
        remedy = "wait for its end, or cancel it"
        raise Conflict("job_is_not_final", f"the job is {parent.status}", status=parent.status, remedy=remedy)
    spec = build_spec(merge_patch(parent.spec, changes))
    return submit_job(session, identity, settings, spec, parent_id=parent.id)


def build_spec(values: Json) -> JobSpec:
    """Raises InvalidRequest with the first field that is wrong."""
    try:
        return JobSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "body"
        code = "unknown_field" if first["type"] == "extra_forbidden" else "invalid_field"
        raise InvalidRequest(code, f"{field}: {first['msg']}", param=field) from None


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


def _check_request(session: Session, settings: Settings, spec: JobSpec) -> tuple[ModelFacts | None, Row[Any]]:
    """The facts of the model, and the row of `repository.get_submission_facts`. Raises InvalidRequest, NotFound."""
    model_facts = get_model_facts(settings, spec.model)
    if spec.training.early_stopping is not None and spec.validation is None:
        raise InvalidRequest(
            "early_stopping_needs_validation",
            "early stopping looks at the validation loss, and the job holds no rows out",
            param="training.early_stopping",
            remedy="Give validation a fraction or a dataset, or leave early_stopping out.",
        )
    if spec.webhook_url is not None and repository.find_webhook_by_url(session, spec.webhook_url) is None:
        raise InvalidRequest(
            "webhook_not_registered",
            "webhook_url is the URL of no webhook of yours",
            param="webhook_url",
            remedy="register it first: POST /webhooks",
        )
    validation_id = spec.validation.id if spec.validation else None
    for uri, param in (
        (spec.dataset.uri, "dataset.uri"),
        (spec.validation.uri if spec.validation else None, "validation.uri"),
    ):
        if uri is not None:
            parse_reference(uri, settings.data_roots, param)
    facts = repository.get_submission_facts(session, spec.dataset.id, validation_id, spec.resources.gpus)
    if spec.dataset.id is not None:
        _check_dataset(spec.dataset.id, facts.dataset_status, "dataset.id")
    if validation_id is not None:
        _check_dataset(validation_id, facts.validation_status, "validation.id")
    return model_facts, facts


def _resolve_references(session: Session, identity: Identity, settings: Settings, spec: JobSpec) -> JobSpec:
    """With the ids of new datasets in the place of references: whoever tries the job again gets the same rows."""
    update: dict[str, Any] = {}
    if spec.dataset.uri is not None:
        dataset = create_referenced_dataset(session, identity, settings, spec.dataset.uri, param="dataset.uri")
        update["dataset"] = DatasetReference(id=dataset.id)
    if spec.validation is not None and spec.validation.uri is not None:
        dataset = create_referenced_dataset(session, identity, settings, spec.validation.uri, param="validation.uri")
        update["validation"] = ValidationSpec(id=dataset.id)
    return spec.model_copy(update=update)


def _check_dataset(dataset_id: str, status: str | None, param: str) -> None:
    if status is None:
        raise NotFound("dataset_not_found", f"there is no dataset {dataset_id!r}", param=param)
    if status == DatasetStatus.REJECTED:
        raise InvalidRequest(
            "dataset_rejected",
            f"dataset {dataset_id} did not pass its check; read GET /datasets/{dataset_id}/report",
            param=param,
        )
