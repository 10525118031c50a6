"""Base models that jobs may name: the folders in MODELS_DIR and the entries of MODELS_FILE. Nothing else.

Both are read anew for every request and every attempt, so that what was added is there at once, for all processes;
submissions go by what `jobs.planning.get_model_facts` keeps for a second.
"""

from pathlib import Path

from jobs import hub
from jobs.errors import Conflict, InvalidRequest
from jobs.model_digest import compute_digest
from jobs.models_file import ModelEntry, ModelsFileInvalid, append_entry, load_entries
from jobs.settings import Settings
from trainer_core.errors import ModelError
from trainer_core.model_files import ModelProblem, check_model_folder
from trainer_core.planning.model_facts import check_tokenizer, load_model_facts

_HUB_FOLDER = ".hub"
"""In MODELS_DIR: models that were pulled, below their names and commits."""


def list_models(settings: Settings) -> list[ModelEntry]:
    """By id. An entry of the file wins over a folder of the same name.

    Of a hub's model that was pulled, `source` is the folder that it is in.
    """
    assert settings.models_dir is not None
    folders = [path for path in _list_folder(settings.models_dir) if path.is_dir() and path.name[0] != "."]
    models = {path.name: ModelEntry(id=path.name, source=str(path)) for path in folders}
    if settings.models_file is not None:
        models |= {entry.id: _find_pulled(settings, entry) for entry in load_entries(settings.models_file)}
    return [models[name] for name in sorted(models)]


def is_of_hub(settings: Settings, model: ModelEntry) -> bool:
    """Whether it comes from a hub, pulled or not."""
    assert settings.models_dir is not None
    path = Path(model.source)
    return not path.is_absolute() or path.is_relative_to(settings.models_dir / _HUB_FOLDER)


def add_model(settings: Settings, entry: ModelEntry) -> ModelEntry:
    """Register it, pinned: a folder by the digest of its files, a hub's model by its commit.

    Raises Conflict, InvalidRequest; then nothing is registered.
    """
    if settings.models_file is None:
        remedy = "Set MEDTUNE_MODELS_FILE, to the same file for the API, the workers and the command line."
        raise Conflict("models_file_not_set", "there is no MODELS_FILE to register models in", remedy=remedy)
    pinned = _pin_folder(entry) if Path(entry.source).is_absolute() else _pin_commit(entry)
    try:
        _check_name(settings, pinned)
        append_entry(settings.models_file, pinned)
    except ModelsFileInvalid as error:
        raise Conflict("models_file_invalid", str(error), remedy="Correct the file; it was not changed.") from error
    return _find_pulled(settings, pinned)


def pull_model(settings: Settings, name: str) -> ModelEntry:
    """Fetch a registered model's pinned commit from the hub; one that is there already stays.

    Raises Conflict, InvalidRequest, OSError.
    """
    entries = load_entries(settings.models_file) if settings.models_file is not None else []
    entry = next((entry for entry in entries if entry.id == name), None)
    if entry is None:
        remedy = "`medtune models add` registers one; folders are where they are, and need no pull."
        raise InvalidRequest("model_not_found", f"MODELS_FILE has no model {name!r}", param="id", remedy=remedy)
    if Path(entry.source).is_absolute():
        raise InvalidRequest("model_is_a_folder", f"model {name!r} is a folder: there is nothing to fetch", param="id")
    if entry.revision is None or not hub.COMMIT.fullmatch(entry.revision):
        remedy = "Give its entry in MODELS_FILE the full commit as `revision`: 40 hexadecimal digits."
        raise InvalidRequest("revision_not_pinned", f"model {name!r} is not pinned", param="revision", remedy=remedy)
    folder = _get_pulled_folder(settings, entry.source, entry.revision)
    hub.fetch_snapshot(entry.source, entry.revision, folder, with_code=entry.trust_remote_code)
    return _find_pulled(settings, entry)


def _find_pulled(settings: Settings, entry: ModelEntry) -> ModelEntry:
    if Path(entry.source).is_absolute() or not hub.COMMIT.fullmatch(entry.revision or ""):
        return entry
    assert entry.revision is not None
    folder = _get_pulled_folder(settings, entry.source, entry.revision)
    return entry.model_copy(update={"source": str(folder)}) if folder.is_dir() else entry


def _get_pulled_folder(settings: Settings, hub_id: str, commit: str) -> Path:
    """The hub allows no `--` in names."""
    assert settings.models_dir is not None
    return settings.models_dir / _HUB_FOLDER / hub_id.replace("/", "--") / commit


def _pin_folder(entry: ModelEntry) -> ModelEntry:
    folder = Path(entry.source)
    if entry.revision is not None:
        message = "a folder has no revision: it is pinned by the digest of its files"
        raise InvalidRequest("revision_of_a_folder", message, param="revision", remedy="Leave `revision` out.")
    if not folder.is_dir():
        raise InvalidRequest("source_not_found", "source: there is no such folder", param="source")
    if problems := find_problems(entry):
        raise InvalidRequest(problems[0].code, problems[0].message, param="source", remedy=problems[0].remedy)
    return entry.model_copy(update={"digest": compute_digest(folder)})


def _pin_commit(entry: ModelEntry) -> ModelEntry:
    """A full commit is taken as it is: what it holds is checked when it is pulled."""
    if not hub.HUB_ID.fullmatch(entry.source) or "--" in entry.source or ".." in entry.source:
        message = f"source: {entry.source!r} is neither an absolute folder nor a hub id such as org/name"
        raise InvalidRequest("source_invalid", message, param="source")
    if entry.revision is not None and hub.COMMIT.fullmatch(entry.revision):
        return entry
    try:
        return entry.model_copy(update={"revision": hub.resolve_revision(entry.source, entry.revision or "main")})
    except Conflict as error:
        raise InvalidRequest(
            "revision_not_pinned",
            f"revision: {error.message}",
            param="revision",
            remedy="Give the full commit, 40 hexadecimal digits, which takes no hub; or let this machine reach one.",
        ) from error


def _check_name(settings: Settings, entry: ModelEntry) -> None:
    """A folder's name stays that folder's. Raises Conflict."""
    other = next((model for model in list_models(settings) if model.id == entry.id), None)
    if other is not None and Path(other.source).resolve() != Path(entry.source).resolve():
        raise Conflict(
            "model_exists", f"there is a model {entry.id!r} already", param="id", remedy="Choose another id."
        )


def get_model(settings: Settings, name: str) -> ModelEntry:
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


def find_problems(model: ModelEntry) -> list[ModelProblem]:
    """Why a model's folder cannot be trained. Nothing is known of a hub's model before it is fetched."""
    folder = Path(model.source)
    if not folder.is_absolute():
        return []
    try:
        if problems := check_model_folder(folder):
            return problems
        check_tokenizer(load_model_facts(folder))
        is_changed = model.digest is not None and compute_digest(folder) != model.digest
    except ModelError as error:
        return [ModelProblem(error.code, error.message, error.remedy)]
    except (OSError, ValueError, LookupError) as error:
        message = f"The model's files cannot be read: {type(error).__name__}."
        return [ModelProblem("model_files_damaged", message, "Copy the model's folder again and completely.")]
    if is_changed:
        message = "The folder's files are not those that were registered."
        return [ModelProblem("model_changed", message, "Put them back, or register the folder under another id.")]
    return []


def _list_folder(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []
