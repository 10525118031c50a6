"""Check of a base model's folder before anything loads it. Torch-free: the API refuses a bad folder with it."""

import dataclasses
from pathlib import Path

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_PICKLE_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclasses.dataclass(frozen=True)
class ModelProblem:
    """Why a folder cannot be a base model."""

    code: str
    message: str
    remedy: str


def check_model_folder(path: Path) -> list[ModelProblem]:
    """Every reason why the folder is no usable base model; an empty list when there is none."""
    problems = []
    if not (path / "config.json").is_file():
        problems.append(
            ModelProblem(
                "model_config_missing",
                "The folder has no config.json.",
                "Name the folder that holds the model itself: config.json, *.safetensors and the tokenizer.",
            )
        )
    if not any(path.glob("*.safetensors")):
        problems.append(_describe_missing_weights(path))
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        problems.append(
            ModelProblem(
                "model_tokenizer_missing",
                "The folder has no tokenizer.",
                "Copy tokenizer.json and tokenizer_config.json of the model into the folder.",
            )
        )
    return problems


def _describe_missing_weights(path: Path) -> ModelProblem:
    if any(next(path.glob(pattern), None) for pattern in _PICKLE_WEIGHTS):
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
