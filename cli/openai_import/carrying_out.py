"""Uploads the files of jobs that are taken, writes the jobs' requests, and submits them: each once, however often it is
asked.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.openai_import.planning import Taken
from medtune.connection import Connection

Json = dict[str, Any]

_DIGITS = 16
"""Of a file's SHA-256 in the name of its dataset."""


class Uploads:
    """Datasets by their content. Those of an earlier run are known by their names, which tell file id and digest: a
    policy may have changed their rows since.
    """

    def __init__(self, client: Connection, phi_policy: str | None) -> None:
        self._client, self._phi_policy = client, phi_policy
        self._found: dict[str, Json] = {}
        self._earlier: dict[str, Json] | None = None

    def upload(self, path: Path, file_id: str) -> Json:
        """The dataset. Raises ApiError, OSError."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest not in self._found:
            self._found[digest] = self._find_earlier(digest) or self._send(path, file_id, digest)
        return self._found[digest]

    def _find_earlier(self, digest: str) -> Json | None:
        if self._earlier is None:
            named = {dataset["name"]: dataset for dataset in _list_all(self._client, "/datasets")}
            self._earlier = {name.rpartition(" ")[2]: dataset for name, dataset in named.items()}
        return self._earlier.get(_mark(digest))

    def _send(self, path: Path, file_id: str, digest: str) -> Json:
        data = {"name": f"{path.name[:60]} {file_id} {_mark(digest)}"}
        if self._phi_policy is not None:
            data["phi_policy"] = self._phi_policy
        key = _digest([path.name, data, digest])
        dataset = self._client.upload_file(path, data, idempotency_key=key)
        if self._is_gone(dataset["id"]):  # It was deleted within the day for which its key answers.
            dataset = self._client.upload_file(path, data, idempotency_key=f"{key}-{secrets.token_hex(8)}")
        return dataset

    def _is_gone(self, dataset_id: str) -> bool:
        return self._client.http.get(f"/datasets/{dataset_id}").status_code == 404


def _digest(thing: Any) -> str:
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()


def _mark(digest: str) -> str:
    return f"sha256:{digest[:_DIGITS]}"


def build_request(taken: Taken, uploads: Uploads) -> Json:
    """With the rows, which are uploaded. Raises ApiError, OSError."""
    request = {**taken.request, "dataset": {"id": uploads.upload(taken.training, taken.job.training_file)["id"]}}
    if taken.validation is not None:
        validation_file = taken.job.validation_file or ""
        request["validation"] = {"id": uploads.upload(taken.validation, validation_file)["id"]}
    return request


def write_request(request: Json, folder: Path, job_id: str) -> Path:
    """Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{job_id}.json"
    path.write_text(json.dumps(request, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def submit(client: Connection, request: Json) -> tuple[str, bool]:
    """The id of the job that was made of the same one, now or earlier, and whether it is new. Raises ApiError."""
    earlier = client.get("/jobs", limit=1, **{"metadata[openai_job]": request["metadata"]["openai_job"]})["data"]
    if earlier:
        return earlier[0]["id"], False
    return client.post("/jobs", request, idempotency_key=_digest(request))["id"], True


def _list_all(client: Connection, path: str) -> Iterator[Json]:
    after = None
    while True:
        page = client.get(path, limit=1000, after=after)
        yield from page["data"]
        if not page["has_more"]:
            return
        after = page["data"][-1]["id"]
