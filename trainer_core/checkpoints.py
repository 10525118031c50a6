"""Checkpoints: `step-N` folders that are complete or absent, each with the sha256 of its files.

    checkpoints/step-50/
      adapter_config.json, adapter_model.safetensors, tokenizer...    the adapter as it would be saved at the end
      trainer_state.pt      weights, optimizer, random states and progress (trainer_core.training_state)
      manifest.json         run, step, metrics, sha256 and size of every other file

The data's position is the step itself: the schedule is a pure function of it.
"""

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

_MANIFEST = "manifest.json"
VERSION = version("medtune")


class _File(BaseModel):
    sha256: str
    bytes: int


class _Manifest(BaseModel):
    step: int
    run: str
    """Fingerprint of the run that wrote it."""
    version: str = ""
    """Of medtune: another one may write another fingerprint for the same run."""
    metrics: dict[str, float]
    files: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], _File]


class Checkpoint(_Manifest):
    """A complete folder, as its manifest describes it."""

    path: Path

    @property
    def eval_loss(self) -> float:
        return self.metrics.get("eval_loss", math.inf)


@contextlib.contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yields a folder to fill; it takes its name only when everything in it is on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for file in [*partial.rglob("*"), partial]:
        _flush_to_disk(file)
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
    _flush_to_disk(path.parent)


def write_manifest(folder: Path, *, run: str, step: int, metrics: dict[str, float]) -> int:
    """List the folder's files with their sha256 in manifest.json. Returns the bytes of all of them."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    entries = {file.name: _File(sha256=_hash_file(file), bytes=file.stat().st_size) for file in files}
    manifest = _Manifest(run=run, version=VERSION, step=step, metrics=metrics, files=entries)
    (folder / _MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return sum(entry.bytes for entry in entries.values())


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Those with a readable manifest, the newest first. What they hold is not looked at."""
    found = (_read_manifest(path) for path in folder.glob("step-*"))
    return sorted((one for one in found if one is not None), key=lambda checkpoint: -checkpoint.step)


def find_damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with a checkpoint's files, or None when all are as they were written."""
    for name, entry in checkpoint.files.items():
        file = checkpoint.path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry.bytes or _hash_file(file) != entry.sha256:
            return f"{name} is not what was written"
    return None


def find_best_checkpoint(folder: Path) -> Checkpoint | None:
    """The one with the lowest validation loss, the earlier of equals."""
    validated = [checkpoint for checkpoint in list_checkpoints(folder) if checkpoint.eval_loss < math.inf]
    return min(validated, key=lambda checkpoint: (checkpoint.eval_loss, checkpoint.step), default=None)


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Leave the newest `keep`, and the best."""
    best = find_best_checkpoint(folder)
    for checkpoint in list_checkpoints(folder)[keep:]:
        if checkpoint != best:
            shutil.rmtree(checkpoint.path)


def _read_manifest(path: Path) -> Checkpoint | None:
    try:
        manifest = _Manifest.model_validate_json((path / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return Checkpoint(path=path, **dict(manifest))


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
