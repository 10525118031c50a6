"""Base models that jobs may name: the folders in MODELS_DIR and the entries of MODELS_FILE. Nothing else."""

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from jobs.errors import InvalidRequest
from jobs.settings import Settings
from trainer_core.config import ConfigModel
from trainer_core.errors import ModelError
from trainer_core.model_files import ModelProblem, check_model_folder
from trainer_core.planning.model_facts import check_tokenizer, load_model_facts
from trainer_core.run_dir import ModelSource


class ModelsFileInvalid(Exception):
    """The operator's MODELS_FILE cannot be read."""


class _ModelsFile(ConfigModel):
    model: list[ModelSource] = Field(default_factory=list)


def list_models(settings: Settings) -> list[ModelSource]:
    """By id. An entry of the file wins over a folder of the same name."""
    assert settings.models_dir is not None
    folders = [path for path in _list_folder(settings.models_dir) if path.is_dir() and path.name[0] != "."]
    models = {path.name: ModelSource(id=path.name, source=str(path)) for path in folders}
    if settings.models_file is not None:
        models |= {model.id: model for model in _load_models_file(settings.models_file)}
    return [models[name] for name in sorted(models)]


def get_model(settings: Settings, name: str) -> ModelSource:
    """The model, whose folder can be trained as far as its files tell. Raises InvalidRequest.

    The name is compared with those that exist, never made into a path.
    """
    model = next((model for model in list_models(settings) if model.id == name), None)
    if model is None:
        raise InvalidRequest(
            "model_not_found", f"there is no model {name!r}; GET /models lists those there are", param="model"
        )
    if problems := find_problems(model):
        first = problems[0]
        raise InvalidRequest(
            first.code,
            f"model {name!r} cannot be trained: {first.message}",
            param="model",
            remedy=first.remedy,
            problems=[problem.code for problem in problems],
        )
    return model


def find_problems(model: ModelSource) -> list[ModelProblem]:
    """Why a model's folder cannot be trained. Nothing is known of a hub's model before it is fetched."""
    folder = Path(model.source)
    if not folder.is_absolute():
        return []
    if problems := check_model_folder(folder):
        return problems
    try:
        check_tokenizer(load_model_facts(folder))
    except ModelError as error:
        return [ModelProblem(error.code, error.message, error.remedy)]
    return []


def _list_folder(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _load_models_file(path: Path) -> list[ModelSource]:
    try:
        return _ModelsFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).model
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise ModelsFileInvalid(f"MEDTUNE_MODELS_FILE {path}: {error}") from error
