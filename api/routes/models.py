"""Base models that jobs may name."""

import re
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, field_validator

from api.dependencies import IdentityDep, ServicesDep, TransactionDep
from api.idempotency import SendingDep, claim
from api.pages import Page
from api.schemas import ModelRead
from jobs.errors import InvalidRequest, NotFound
from jobs.model_registry import add_model, find_problems, is_of_hub, list_models
from jobs.models_file import ModelEntry
from jobs.settings import Settings
from trainer_core.planning.compatibility import CHAT_TEMPLATES

router = APIRouter(prefix="/models", tags=["models"])

_ID = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"


class ModelCreate(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {"id": "med-8b", "source": "org/med-8b", "revision": "0123456789abcdef0123456789abcdef01234567"}
            ]
        },
    )

    id: Annotated[str, Field(min_length=1, max_length=200, pattern=_ID)]
    """The name that jobs use."""
    source: Annotated[str, Field(min_length=1, max_length=1000)]
    """A hub id such as `org/name`, or a folder inside the operator's `MEDTUNE_MODELS_DIR`."""
    revision: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None = (
        None
    )
    """Of a hub id: the full commit. A branch or tag, or null for `main`, is resolved to one where the hub answers."""
    chat_template: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    """A built-in template's name, or Jinja; null: the model's own."""

    @field_validator("chat_template")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        if template is not None and template not in CHAT_TEMPLATES and "{" not in template:
            raise ValueError(f"neither one of {', '.join(CHAT_TEMPLATES)} nor a Jinja template")
        if template is not None and re.search(r"[\0-\x08\x0b\x0c\x0e-\x1f]", template):
            raise ValueError("control characters are not allowed")
        return template


@router.post("", status_code=201, summary="Register a base model")
def create_model(
    body: ModelCreate,
    _identity: IdentityDep,
    transaction: TransactionDep,
    services: ServicesDep,
    sending: SendingDep,
) -> ModelRead:
    """For all tenants, at once, pinned to a commit or to the digest of a folder's files. Safetensors only. Code that
    comes with a model is the operator's decision: `medtune models add --trust-remote-code`. A hub's model is fetched by
    `medtune models pull`, or by the workers where they reach the hub.

    409 when there is such a model, or when the operator has set no MODELS_FILE that the API may write.
    """
    entry = ModelEntry(**body.model_dump())
    _check_folder(services.settings, entry.source)
    with transaction as caller:
        first = claim(caller, sending, body.model_dump_json())
        if first.answer is not None:
            return ModelRead.model_validate_json(first.answer)
        # Within the transaction, though it may ask the hub: it is rare, and admins' alone.
        model = add_model(services.settings, entry)
        caller.object_id = model.id
        answer = _read_model(services.settings, model)
        first.keep(answer.model_dump_json())
    return answer


@router.get("", summary="List base models")
def get_models(_identity: IdentityDep, services: ServicesDep) -> Page[ModelRead]:
    return Page(
        data=[_read_model(services.settings, model) for model in list_models(services.settings)], has_more=False
    )


@router.get("/{model_id:path}", summary="One base model")
def get_model(model_id: str, _identity: IdentityDep, services: ServicesDep) -> ModelRead:
    for model in list_models(services.settings):
        if model.id == model_id:
            return _read_model(services.settings, model)
    raise NotFound("model_not_found", f"there is no model {model_id!r}")


def _check_folder(settings: Settings, source: str) -> None:
    """Over HTTP nobody asks which folders this machine has. Raises InvalidRequest."""
    assert settings.models_dir is not None
    if not Path(source).is_absolute():
        return
    if "\0" in source or not Path(source).resolve().is_relative_to(settings.models_dir.resolve()):
        message = "source: only folders inside the operator's MODELS_DIR can be registered here"
        remedy = "The operator registers any folder with `medtune models add`."
        raise InvalidRequest("source_outside_models_dir", message, param="source", remedy=remedy)


def _read_model(settings: Settings, model: ModelEntry) -> ModelRead:
    problems = find_problems(model)
    return ModelRead(
        id=model.id,
        source="hub" if is_of_hub(settings, model) else "folder",
        revision=model.revision,
        digest=model.digest,
        trust_remote_code=model.trust_remote_code,
        is_local=Path(model.source).is_absolute(),
        trainable=not problems,
        problems=[{"code": p.code, "message": p.message, "remedy": p.remedy} for p in problems],
    )
