"""Things that tests need, made in one line."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.plain_client import Client

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


def is_alive(process: psutil.Process) -> bool:
    """A process may end between two looks at it, and one whose parent has not looked yet is dead all the same."""
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def create_model_folder(path: Path, **config: Any) -> Path:
    """A folder that looks like a base model, for jobs that the fake trainer runs. `config` changes its config.json."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"num_hidden_layers": 1, "max_position_embeddings": 4096} | config))
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    shapes = {
        "model.embed_tokens.weight": [16, 8],
        "model.layers.0.self_attn.q_proj.weight": [8, 8],
        "model.layers.0.mlp.down_proj.weight": [8, 24],
        "lm_head.weight": [16, 8],
    }
    write_weights(path / "model.safetensors", shapes)
    return path


def write_weights(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """A safetensors file of zeros in bf16, which take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)


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


def find_process(*words: str) -> psutil.Process:
    """Waits for the process whose arguments are these, or end with them."""

    def look() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [])[-len(words) :] == list(words):
                return process
        return None

    found = wait_until(look)
    assert found is not None
    return found


def find_stubborn_child(run_dir: Path) -> psutil.Process:
    return find_process(f"stubborn child of {run_dir}")


def find_trainer(run_dir: Path) -> psutil.Process:
    """The trainer itself, and not what is around it."""

    def look() -> list[psutil.Process]:
        ends = ["train", str(run_dir)]
        found = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-2:] == ends]
        return [process for process in found if "worker.runner" not in process.info["cmdline"]]

    return wait_until(look)[0]


def read_all(client: Client, path: str) -> list[dict[str, Any]]:
    """All pages of logs, metrics or events."""
    return [item for page in client.follow(path) for item in page]
