"""Models as OpenAI's clients list them: the bases that jobs may name, and the adapters that jobs made."""

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api.dependencies import ServicesDep, TransactionDep
from api.routes.openai import ids
from api.routes.openai.schemas import (
    DeletedObject,
    ListObject,
    ModelObject,
    build_list,
    read_base_model,
    read_fine_tuned_model,
)
from jobs import lifecycle, repository
from jobs.errors import InvalidRequest, NotFound
from jobs.lifecycle import Person
from jobs.model_registry import list_models
from jobs.models import Adapter
from jobs.status import AdapterState

router = APIRouter(prefix="/models")

_MAX_ADAPTERS = 10_000
"""Clients ask for no second page of models."""


@router.get("", name="list_adapters", summary="List base models and fine-tuned models")
def get_models(transaction: TransactionDep, services: ServicesDep) -> ListObject[ModelObject]:
    """The bases by name, then what was fine-tuned, the newest first: the tenant's own, and what anybody released."""
    with transaction as caller:
        adapters = repository.list_adapters(caller.session, limit=_MAX_ADAPTERS, after=None)
    found = [read_base_model(model) for model in list_models(services.settings)]
    found += [read_fine_tuned_model(adapter) for adapter in adapters if adapter.state != AdapterState.REJECTED]
    return build_list(found, len(found))


@router.get("/{model:path}", name="get_adapter", summary="One model")
def get_model(model: str, transaction: TransactionDep, services: ServicesDep) -> ModelObject:
    with transaction as caller:
        adapter = _find_adapter(caller.session, model)
    if adapter is not None:
        return read_fine_tuned_model(adapter)
    for base in list_models(services.settings):
        if base.id == model:
            return read_base_model(base)
    raise _not_found(model)


@router.delete("/{model:path}", name="reject_adapter", summary="Withdraw a fine-tuned model")
def delete_model(model: str, transaction: TransactionDep) -> DeletedObject:
    """Its adapter becomes `rejected`, for good: it is listed no more. Its record and its job stay."""
    with transaction as caller:
        adapter = _find_adapter(caller.session, model)
        if adapter is None and ids.find_job_of_model(model) is None:
            raise InvalidRequest("model_is_a_base", "only fine-tuned models can be deleted", param="model")
        if adapter is None or adapter.tenant_id != caller.identity.tenant_id:
            raise _not_found(model)
        caller.object_id = adapter.job_id
        person = Person(caller.identity, f"API key {caller.identity.key_id}", "deleted by DELETE /v1/models")
        lifecycle.reject_adapter(caller.session, adapter.job_id, person)
    return DeletedObject(id=model, object="model")


def _find_adapter(session: Session, model: str) -> Adapter | None:
    """None also for one that was rejected."""
    job_id = ids.find_job_of_model(model)
    if job_id is None:
        return None
    adapter = repository.find_adapter(session, job_id)
    if adapter is None or adapter.state == AdapterState.REJECTED or read_fine_tuned_model(adapter).id != model:
        return None
    return adapter


def _not_found(model: str) -> NotFound:
    return NotFound("model_not_found", f"there is no model {model!r}", param="model")
