"""MODELS_FILE: the operator's entries of base models. Entries are added at its end, so that what people wrote stays."""

import fcntl
import json
import os
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from jobs.errors import Conflict
from trainer_core.config import ConfigModel
from trainer_core.run_dir import ModelSource


class ModelsFileInvalid(Exception):
    """The operator's MODELS_FILE cannot be read."""


class ModelEntry(ModelSource):
    """A base model as it is registered."""

    digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    """Of a folder's files when it was added: `jobs.model_digest`. Null: they may change."""


class _ModelsFile(ConfigModel):
    model: list[ModelEntry] = Field(default_factory=list)


def load_entries(path: Path) -> list[ModelEntry]:
    """None of a file that is still to be made. Raises ModelsFileInvalid, also where its folder is not there."""
    try:
        if path.parent.is_dir() and not path.exists():
            return []
        return _parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelsFileInvalid(f"MEDTUNE_MODELS_FILE {path}: {error}") from error


def append_entry(path: Path, entry: ModelEntry) -> None:
    """Whole or not at all; of several at once, each is added. A file that is not there is made.

    Raises ModelsFileInvalid for a file that cannot be read, Conflict for an id that it has already, or when it cannot
    be written.
    """
    path = Path(os.path.realpath(path))  # A link stays one.
    try:
        with _lock(path.parent):
            before = load_entries(path)
            if any(other.id == entry.id for other in before):
                raise Conflict(
                    "model_exists",
                    f"MODELS_FILE has a model {entry.id!r} already",
                    param="id",
                    remedy="Choose another id: jobs go on to mean what they meant.",
                )
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            _replace(path, _add(text, entry), [*before, entry])
    except OSError as error:
        raise Conflict(
            "models_file_not_writable",
            f"MODELS_FILE cannot be written: {error.strerror}",
            remedy="Let this process write the file and its folder, or add the entry by hand.",
        ) from error


def _parse(text: str) -> list[ModelEntry]:
    """Raises ValueError, of which tomllib's and pydantic's errors are."""
    return _ModelsFile.model_validate(tomllib.loads(text)).model


def _add(text: str, entry: ModelEntry) -> str:
    values = entry.model_dump(exclude_defaults=True)
    lines = "".join(f"{name} = {_write_value(value)}\n" for name, value in values.items())
    separator = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    return f"{text}{separator}[[model]]\n{lines}"


def _write_value(value: str | bool) -> str:
    """JSON's texts are TOML's, but for one control character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _replace(path: Path, text: str, expected: list[ModelEntry]) -> None:
    """Only by what reads as it should: such as not below `model = [...]` in one line."""
    try:
        is_right = _parse(text) == expected
    except (ValueError, ValidationError):
        is_right = False
    if not is_right:
        message = "an entry at the end of MODELS_FILE would not be read as one"
        remedy = "Write its entries as [[model]] tables, or add this one by hand."
        raise Conflict("models_file_not_appendable", message, remedy=remedy)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Against others who add; readers need none, for the file is replaced at once."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
