"""What a folder holds of OpenAI's objects, as its API returns them, and which file in it has the rows of which object.

Objects are in files that end in `.json` or `.jsonl`: one object, a list page, or an object a line. A `.jsonl` whose
first line is no such object holds rows.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, StringConstraints, ValidationError

ObjectId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,100}$")]

_KINDS = frozenset({"fine_tuning.job", "file", "list"})
_MAX_OBJECT_BYTES = 64 << 20


class ExportedFile(BaseModel):
    """An object of the kind `file`."""

    id: ObjectId
    filename: str = ""
    bytes: int | None = None


class ExportedMethod(BaseModel):
    type: str = "supervised"
    supervised: dict[str, Any] | None = None


class ExportedJob(BaseModel):
    """An object of the kind `fine_tuning.job`."""

    id: ObjectId
    model: str
    status: str = ""
    training_file: ObjectId
    validation_file: ObjectId | None = None
    hyperparameters: dict[str, Any] | None = None
    method: ExportedMethod | None = None
    seed: int | None = None
    suffix: str | None = None
    user_provided_suffix: str | None = None
    """As jobs call it that are listed; `suffix` is what a request says."""
    fine_tuned_model: str | None = None
    metadata: dict[str, str] | None = None


class Unreadable(BaseModel):
    """Something that looks like an object and is none."""

    place: str
    reason: str


class NoContent(Exception):
    """A file's rows are not there, or not whole; the message says it."""


@dataclass
class Export:
    jobs: dict[str, ExportedJob] = field(default_factory=dict)
    """By id."""
    files: dict[str, ExportedFile] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    contents: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    """Files that hold no objects, by name."""

    def get_content(self, file_id: str) -> Path:
        """The file that is called as the id, with any ending or none, or else as its object says. Raises NoContent."""
        exported = self.files.get(file_id)
        named_by_id = [path for name in self.contents if _is_named(name, file_id) for path in self.contents[name]]
        by_name = self.contents.get(exported.filename, []) if exported and exported.filename else []
        found = named_by_id or by_name
        names = file_id + (f" or {exported.filename}" if exported and exported.filename else "")
        if not found:
            raise NoContent(f"no file is called {names}; put the content of {file_id} there")
        if len(found) > 1 or (not named_by_id and self._count_named(exported) > 1):
            raise NoContent(f"several files could be the content of {file_id}; call the right one {file_id}.jsonl")
        if exported and exported.bytes is not None and found[0].stat().st_size != exported.bytes:
            raise NoContent(f"{found[0]} has not the {exported.bytes} bytes that {file_id} had; fetch it again")
        return found[0]

    def _count_named(self, exported: ExportedFile | None) -> int:
        return sum(exported is not None and other.filename == exported.filename for other in self.files.values())


def _is_named(name: str, file_id: str) -> bool:
    return name == file_id or name.startswith(f"{file_id}.")


def load_export(folder: Path) -> Export:
    """Raises OSError."""
    export = Export()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            objects = _find_objects(path)
        except ValueError as error:
            export.unreadable.append(Unreadable(place=str(path), reason=f"no JSON: {error}"))
            continue
        if objects is None:
            export.contents[path.name].append(path)
            continue
        for place, value in objects:
            _add(export, place, value)
    return export


def _find_objects(path: Path) -> list[tuple[str, Any]] | None:
    """With their places; None: the file holds something else. Raises ValueError."""
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            first = file.readline(_MAX_OBJECT_BYTES)
        if _is_object(_parse(first)):
            lines = path.read_bytes().splitlines()
            return [(f"{path}, line {n}", json.loads(line)) for n, line in enumerate(lines, 1) if line.strip()]
        return None
    if path.suffix == ".json" and path.stat().st_size <= _MAX_OBJECT_BYTES:
        value = json.loads(path.read_bytes())
        return [(str(path), value)] if _is_object(value) else None
    return None


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and value.get("object") in _KINDS


def _add(export: Export, place: str, value: Any) -> None:
    """Objects of other kinds, such as events, are of no use here."""
    kind = value.get("object") if isinstance(value, dict) else None
    try:
        if kind == "list":
            for item in _list_items(value):
                _add(export, place, item)
        elif kind == "fine_tuning.job":
            job = ExportedJob.model_validate(value)
            export.jobs[job.id] = job
        elif kind == "file":
            file = ExportedFile.model_validate(value)
            export.files[file.id] = file
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field_name = ".".join(map(str, first["loc"]))
        export.unreadable.append(Unreadable(place=place, reason=f"{kind}: {field_name}: {first['msg']}"))


def _list_items(page: dict[str, Any]) -> Iterator[Any]:
    data = page.get("data")
    yield from data if isinstance(data, list) else ()
