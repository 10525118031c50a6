"""What a base model's folder holds, told before anything loads it. Torch-free: the API refuses a bad folder with it."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer_core.errors import ModelError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_PICKLE_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt")
_SHARD_INDEX = "model.safetensors.index.json"
_NAME_WEIGHTS = (_SHARD_INDEX, "config.json")
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class ModelProblem:
    """Why a folder cannot be a base model."""

    code: str
    message: str
    remedy: str


def check_model_folder(path: Path) -> list[ModelProblem]:
    """Every reason why the folder is no usable base model; an empty list when there is none."""
    problems = []
    names = _list_file_names(path)
    if "config.json" not in names:
        problems.append(
            ModelProblem(
                "model_config_missing",
                "The folder has no config.json.",
                "Name the folder that holds the model itself: config.json, *.safetensors and the tokenizer.",
            )
        )
    if not any(name.endswith(".safetensors") for name in names):
        problems.append(_describe_missing_weights(names))
    if names.isdisjoint(_TOKENIZER_FILES):
        problems.append(
            ModelProblem(
                "model_tokenizer_missing",
                "The folder has no tokenizer.",
                "Copy tokenizer.json and tokenizer_config.json of the model into the folder.",
            )
        )
    problems.extend(_find_foreign_weights(path, names))
    return problems


def _list_file_names(path: Path) -> set[str]:
    try:
        with os.scandir(path) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _find_foreign_weights(path: Path, names: set[str]) -> Iterator[ModelProblem]:
    """Where transformers would load more than the folder's own safetensors files.

    `use_safetensors` decides which file it looks for first. What that file's index, config.json or an adapter in the
    same folder name, it loads as well: files of other folders, and pickles.
    """
    if "adapter_config.json" in names:
        yield ModelProblem(
            "model_holds_adapter",
            "The folder holds an adapter beside the model, and would be loaded with it.",
            "Merge the adapter into the model, or take its files out of the folder.",
        )
    try:
        index, config = (load_json_object(path / name) if name in names else {} for name in _NAME_WEIGHTS)
    except ModelError as error:
        yield ModelProblem(error.code, error.message, error.remedy or "")
        return
    shards = index.get("weight_map", {})
    shard_names = map(str, shards.values() if isinstance(shards, dict) else [shards])
    foreign = [name for name in shard_names if Path(name).name != name or not name.endswith(".safetensors")]
    foreign += _find_values(config, "transformers_weights")
    if foreign:
        yield ModelProblem(
            "model_weights_elsewhere",
            f"The model's weights are to be read from {foreign[0]!r}, and not from the folder's own safetensors files.",
            "Save the model anew with save_pretrained, which names its files as others expect them.",
        )


def _find_values(config: dict[str, Any], name: str) -> Iterator[str]:
    """Of a field of a configuration and of those inside it; null is none."""
    for key, value in config.items():
        if key == name and value is not None:
            yield str(value)
        elif isinstance(value, dict):
            yield from _find_values(value, name)


def _describe_missing_weights(names: set[str]) -> ModelProblem:
    if any(name.endswith(_PICKLE_WEIGHTS) for name in names):
        return ModelProblem(
            "model_weights_pickle",
            "The folder has its weights only as pickles, which run code when they are loaded.",
            "Convert them to safetensors on a machine without secrets.",
        )
    return ModelProblem(
        "model_weights_missing",
        "The folder has no *.safetensors weights.",
        "Download the model completely; a Git LFS clone needs `git lfs pull`.",
    )


def load_json_object(path: Path) -> dict[str, Any]:
    """Raises ModelError."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _refuse_file(path, "is not readable as JSON") from error
    if not isinstance(content, dict):
        raise _refuse_file(path, "is no JSON object")
    return content


def list_weight_files(folder: Path) -> list[Path]:
    """The safetensors files that belong to the model, as transformers chooses them. Raises ModelError.

    Beside them a folder may hold the same weights once more under other names.
    """
    index = folder / _SHARD_INDEX
    if index.is_file():
        shards = load_json_object(index).get("weight_map")
        if not isinstance(shards, dict):
            raise _refuse_file(index, "has no weight_map")
        return [folder / Path(str(name)).name for name in sorted(set(shards.values()))]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def read_tensor_shapes(path: Path) -> Shapes:
    """Of all tensors of a safetensors file, from its header alone. Raises ModelError.

    Layout: 8 bytes little-endian header length, JSON header, data (github.com/huggingface/safetensors#format).
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= _MAX_HEADER_BYTES:
                raise _refuse_file(path, "is no safetensors file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        shapes = {str(name): tuple(int(size) for size in entry["shape"]) for name, entry in header.items()}
        data_bytes = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        is_whole = path.stat().st_size == 8 + length + data_bytes
    except FileNotFoundError as error:
        raise _refuse_file(path, "is missing") from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise _refuse_file(path, "has a header that cannot be read") from error
    if not is_whole:
        raise _refuse_file(path, "is not as long as its tensors")
    return shapes


def _refuse_file(path: Path, fault: str) -> ModelError:
    return ModelError(
        "model_files_damaged",
        f"The model's file {path.name} {fault}.",
        remedy="Copy the model's folder again and completely; a Git LFS clone needs `git lfs pull`.",
    )
