"""What OpenAI's clients send for a job, and the JobSpec that it means."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.routes.openai import ids
from jobs.errors import InvalidRequest, MedtuneError
from jobs.models import Json
from jobs.openai_hyperparameters import HyperparametersBody, translate
from jobs.spec import JobSpec, MetadataKey, MetadataValue
from jobs.submission import build_spec


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class SupervisedBody(_Body):
    hyperparameters: HyperparametersBody | None = None


class MethodBody(_Body):
    type: Literal["supervised", "dpo", "reinforcement"]
    """Only `supervised` is carried out."""
    supervised: SupervisedBody | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class MedtuneOptions(BaseModel):
    """Fields of `POST /jobs`; the client sends them by `extra_body={"medtune": {...}}`."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    training: dict[str, Any] = {}
    """How to train, such as `{"quantization": "4bit", "lora": {"r": 32}}`."""


class JobBody(_Body):
    model: Annotated[str, Field(min_length=1, max_length=200)]
    """A base model's id."""
    training_file: str
    validation_file: str | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The job's name, and part of the fine-tuned model's."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Null: 0."""
    method: MethodBody | None = None
    hyperparameters: HyperparametersBody | None = None
    """As older clients send them; newer ones do so inside `method`."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    integrations: list[dict[str, Any]] | None = None
    """Only empty: no run is reported to anybody else."""
    medtune: MedtuneOptions = MedtuneOptions()


_OWN_FIELDS = {
    "model": "model",
    "dataset": "training_file",
    "name": "suffix",
    "metadata": "metadata",
}
"""Fields of a JobSpec that have a place of their own here."""


def build_job_spec(body: JobBody) -> JobSpec:
    """Raises InvalidRequest, NotFound."""
    _refuse_what_cannot_be(body)
    options = body.medtune.model_dump(exclude_unset=True)
    for field, instead in _OWN_FIELDS.items():
        if field in options:
            raise _refuse("field_given_twice", f"medtune.{field}", f"its place is {instead}")
    values = {
        **options,
        "model": body.model,
        "dataset": {"id": ids.read_file_id(body.training_file, "training_file")},
        "name": body.suffix,
        "metadata": body.metadata or {},
        "training": _merge_hyperparameters(body),
    }
    if body.validation_file is not None:
        if options.get("validation") is not None:
            raise _refuse("field_given_twice", "medtune.validation", "validation_file says it already")
        values["validation"] = {"id": ids.read_file_id(body.validation_file, "validation_file")}
    return build_spec(values)


def _refuse_what_cannot_be(body: JobBody) -> None:
    if body.method is not None and body.method.type != "supervised":
        raise _refuse("method_not_supported", "method.type", "only supervised")
    if body.integrations:
        raise _refuse("integrations_not_supported", "integrations", "no run is reported to anybody else")


def _merge_hyperparameters(body: JobBody) -> Json:
    given = body.hyperparameters
    if body.method is not None and body.method.supervised and body.method.supervised.hyperparameters:
        if given is not None:
            raise _refuse("field_given_twice", "hyperparameters", "method.supervised.hyperparameters says it already")
        given = body.method.supervised.hyperparameters
    given = given or HyperparametersBody()
    training = dict(body.medtune.training)
    for name, value in translate(given, body.seed).items():
        if name in training:
            raise _refuse("field_given_twice", f"medtune.training.{name}", f"{_PARAMS[f'training.{name}']} says it")
        training[name] = value
    return training


_PARAMS = {
    "model": "model",
    "name": "suffix",
    "metadata": "metadata",
    "dataset.id": "training_file",
    "validation.id": "validation_file",
    "training.epochs": "hyperparameters.n_epochs",
    "training.global_batch_size": "hyperparameters.batch_size",
    "training.learning_rate": "hyperparameters.learning_rate_multiplier",
    "training.seed": "seed",
}


def rename_param(error: MedtuneError, body: JobBody) -> None:
    """The field of an error about a JobSpec, as this API's clients sent it."""
    if error.param is None or error.param.partition(".")[0] in JobBody.model_fields:
        return
    name = error.param.removeprefix("training.")
    own = name not in body.medtune.training
    error.param = _PARAMS[error.param] if own and error.param in _PARAMS else f"medtune.{error.param}"


def _refuse(code: str, param: str, why: str) -> InvalidRequest:
    return InvalidRequest(code, f"{param}: {why}", param=param)
