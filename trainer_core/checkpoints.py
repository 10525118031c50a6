"""Checkpoints: `step-N` folders that are complete or absent, each with the sha256 of its files.

    checkpoints/step-50/
      adapter_config.json, adapter_model.safetensors, tokenizer...    the adapter as it would be saved at the end
      trainer_state.pt      optimizer (not under DeepSpeed) and the random states of all ranks
      manifest.json         step, metrics, sha256 and size of every other file

The data's position is the step itself: the batch plan is a pure function of it.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object


@contextlib.contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yields a folder to fill; it takes its name only when everything in it is on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for file in [*partial.rglob("*"), partial]:
        _flush_to_disk(file)
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
    _flush_to_disk(path.parent)


def collect_trainer_state(accelerator: Accelerator, optimizer: Any) -> dict[str, Any]:
    """Optimizer state and each rank's random state. Every rank must call this.

    DeepSpeed cuts the optimizer over its ranks in ways of its own: there the state holds the random states only.
    """
    random_states = gather_object([{"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}])
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return {"random_states": random_states}
    return {"random_states": random_states, "optimizer": optimizer.state_dict()}


def write_manifest(folder: Path, **facts: Any) -> int:
    """List the folder's files with their sha256 in manifest.json. Returns the bytes of all of them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    entries = {
        str(file.relative_to(folder)): {"sha256": _hash_file(file), "bytes": file.stat().st_size} for file in files
    }
    (folder / "manifest.json").write_text(json.dumps({**facts, "files": entries}, indent=1), encoding="utf-8")
    return sum(file.stat().st_size for file in files)


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Leave the newest `keep`."""
    checkpoints = sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    for path in checkpoints[:-keep]:
        shutil.rmtree(path)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
