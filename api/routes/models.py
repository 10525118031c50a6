"""Base models that jobs may name."""

from pathlib import Path

from fastapi import APIRouter

from api.dependencies import IdentityDep, ServicesDep
from api.pages import Page
from api.schemas import ModelRead
from jobs.errors import NotFound
from jobs.model_registry import find_problems, list_models
from trainer_core.run_dir import ModelSource

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", summary="List base models")
def get_models(_identity: IdentityDep, services: ServicesDep) -> Page[ModelRead]:
    return Page(data=[_read_model(model) for model in list_models(services.settings)], has_more=False)


@router.get("/{model_id:path}", summary="One base model")
def get_model(model_id: str, _identity: IdentityDep, services: ServicesDep) -> ModelRead:
    for model in list_models(services.settings):
        if model.id == model_id:
            return _read_model(model)
    raise NotFound("model_not_found", f"there is no model {model_id!r}")


def _read_model(model: ModelSource) -> ModelRead:
    problems = find_problems(model)
    return ModelRead(
        id=model.id,
        source="folder" if Path(model.source).is_absolute() else "hub",
        trainable=not problems,
        problems=[{"code": p.code, "message": p.message, "remedy": p.remedy} for p in problems],
    )
