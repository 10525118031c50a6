"""Things that tests need, made in one line."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cli.client import Client

T = TypeVar("T")


def wait_until(
    read: Callable[[], T], is_done: Callable[[T], object] = bool, seconds: float = 30, every: float = 0.02
) -> T:
    """Poll with a deadline; the last value comes back, or into the failure."""
    deadline = time.monotonic() + seconds
    while not is_done(value := read()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s; the last value was {value!r}")
        time.sleep(every)
    return value


def create_model_folder(path: Path) -> Path:
    """A folder that looks like a base model, for jobs that the fake trainer runs."""
    path.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (path / name).write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def upload_script(client: Client, folder: Path, **script: Any) -> str:
    """A dataset whose only purpose is to tell the fake trainer what to do; its id."""
    row = {"instruction": json.dumps(script), "response": "yes"}
    dataset = client.upload(write_rows(folder / "script.jsonl", [row]))
    return str(client.wait_for_dataset(dataset["id"])["id"])


def submit_script(client: Client, folder: Path, request: dict[str, Any] | None = None, **script: Any) -> str:
    """A job that runs the script; its id."""
    dataset = {"id": upload_script(client, folder, **script)}
    return str(client.post("/jobs", {"model": "tiny", "dataset": dataset, **(request or {})})["id"])


def wait_for_status(client: Client, job_id: str, *statuses: str, seconds: float = 30) -> dict[str, Any]:
    return wait_until(lambda: client.get(f"/jobs/{job_id}"), lambda job: job["status"] in statuses, seconds)


def read_all(client: Client, path: str) -> list[dict[str, Any]]:
    """All pages of logs, metrics or events."""
    return [item for page in client.follow(path) for item in page]
