"""With what an adapter was trained: `environment.json`, which the trainer writes beside it. Torch-free."""

import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

_PACKAGES = (
    *("accelerate", "bitsandbytes", "deepspeed", "medtune", "numpy", "peft"),
    *("safetensors", "tokenizers", "torch", "transformers"),
)


class Environment(BaseModel):
    """Device, interpreter, packages and code of a run."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    device: str = Field(min_length=1)
    """What it was trained on: a GPU's name, or `CPU`."""
    python: str
    packages: dict[str, str] = Field(min_length=1)
    """Versions of those that decide how a run learns, as far as they are installed."""
    code_sha256: str
    """Of the trainer's own source files: tells two builds of the same version apart."""


def read_environment(device: str) -> Environment:
    """Of this process."""
    return Environment(
        device=device, python=platform.python_version(), packages=_list_packages(), code_sha256=hash_code()
    )


@functools.cache
def hash_code() -> str:
    """Of the package's Python files by name."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _list_packages() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
