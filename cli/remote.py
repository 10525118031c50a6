"""Commands that talk to a running service: MEDTUNE_PUBLIC_URL (or HOST and PORT) and MEDTUNE_API_KEY."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from cli.client import FINAL, ApiError, Client, open_client
from cli.errors import fail
from cli.plan_table import describe_plan
from jobs.settings import get_settings

_EXIT_CODES = {"succeeded": 0, "failed": 1, "cancelled": 3, "held": 4}


def add_commands(app: typer.Typer) -> None:
    of_one_job = (wait, show, logs, pause, resume, cancel, retry, download)
    for command in (submit, plan, jobs, *of_one_job, datasets, models, workers):
        app.command()(command)


def submit(
    file: Annotated[Path, typer.Argument(help="A job request as JSON.", exists=True, dir_okay=False)],
    data: Annotated[Path | None, typer.Option(help="Rows to upload as its dataset first.", exists=True)] = None,
) -> None:
    """Create a job and print its id."""
    with _client() as client:
        request = _load_request(file)
        if data is not None:
            request["dataset"] = {"id": client.upload(data)["id"]}
        typer.echo(client.post("/jobs", request)["id"])


def plan(
    file: Annotated[Path, typer.Argument(help="A job request as JSON.", exists=True, dir_okay=False)],
    as_json: Annotated[bool, typer.Option("--json", help="The service's answer as it is.")] = False,
) -> None:
    """Tell what a job would take, and queue nothing."""
    with _client() as client:
        answer = client.post("/jobs", _load_request(file), dry_run=True)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    _print_table(("", ""), describe_plan(answer))
    for warning in answer["warnings"]:
        typer.echo(f"note: {warning['message']}")


def wait(job_id: str) -> None:
    """Wait for a job's end, also while it is paused: exit 0 succeeded, 1 failed, 3 cancelled, 4 held."""
    with _client() as client, Console(stderr=True).status("waiting") as status:
        job = client.wait_for_job(job_id, lambda job: status.update(_describe_wait(job)))
    typer.echo(_describe(job))
    raise typer.Exit(_EXIT_CODES[job["status"]])


def jobs(
    status: Annotated[str | None, typer.Option(help="Only those with this status.")] = None,
    limit: Annotated[int, typer.Option(help="How many of the newest.")] = 20,
) -> None:
    """List jobs, newest first."""
    with _client() as client:
        rows = client.get("/jobs", status=status, limit=limit)["data"]
    _print_table(
        ("job", "status", "model", "step", "loss", "name"),
        [(j["id"], j["status"], j["model"], _step(j), _loss(j), j["name"] or "") for j in rows],
    )


def show(job_id: str) -> None:
    """Print a job, all of it, as JSON."""
    with _client() as client:
        typer.echo(json.dumps(client.get(f"/jobs/{job_id}"), indent=2))


def logs(
    job_id: str, follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the job ends.")] = False
) -> None:
    """Print a job's log."""
    with _client() as client:
        after = 0
        is_final = False
        while not is_final:
            is_final = not follow or client.get(f"/jobs/{job_id}")["status"] in FINAL
            for page in client.follow(f"/jobs/{job_id}/logs", after):
                for chunk in page:
                    sys.stdout.write(chunk["text"])
                    after = chunk["seq"]
            sys.stdout.flush()
            if not is_final:
                time.sleep(0.5)


def pause(job_id: str) -> None:
    """Pause a job; a running one saves a checkpoint first."""
    with _client() as client:
        typer.echo(_describe(client.post(f"/jobs/{job_id}/pause")))


def resume(job_id: str) -> None:
    """Let a paused job go on."""
    with _client() as client:
        typer.echo(_describe(client.post(f"/jobs/{job_id}/resume")))


def cancel(job_id: str) -> None:
    """Cancel a job."""
    with _client() as client:
        typer.echo(_describe(client.post(f"/jobs/{job_id}/cancel")))


def retry(
    job_id: str,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=JSON",
            help="Change the request, such as training.micro_batch_size=1; null is the default. Any number of times.",
        ),
    ] = None,
) -> None:
    """Make a new job of one that ended, and print its id."""
    body = build_changes(changes or [])
    with _client() as client:
        typer.echo(client.post(f"/jobs/{job_id}/retry", body)["id"])


def download(job_id: str, out: Annotated[Path | None, typer.Option(help="File to write.")] = None) -> None:
    """Download a succeeded job's adapter."""
    path = out or Path(f"{job_id}.tar.gz")
    with _client() as client:
        client.download_adapter(job_id, path)
    typer.echo(str(path))


def datasets(
    upload: Annotated[
        Path | None, typer.Option(help="Rows to upload: JSONL, CSV or Parquet, also compressed.", exists=True)
    ] = None,
) -> None:
    """List datasets; or upload one, wait for its check and print the report if it was rejected."""
    with _client() as client:
        if upload is None:
            rows = [(d["id"], d["status"], str(d["rows"] or ""), d["name"]) for d in client.get("/datasets")["data"]]
            _print_table(("dataset", "status", "rows", "name"), rows)
            return
        dataset = client.wait_for_dataset(client.upload(upload)["id"])
        typer.echo(f"{dataset['id']} {dataset['status']}, {dataset['rows']} rows")
        if dataset["status"] == "rejected":
            typer.echo(json.dumps(client.get(f"/datasets/{dataset['id']}/report"), indent=2))
            raise typer.Exit(1)


def models() -> None:
    """List base models."""
    with _client() as client:
        rows = [(m["id"], m["source"], "yes" if m["trainable"] else "no") for m in client.get("/models")["data"]]
    _print_table(("model", "source", "trainable"), rows)


def workers() -> None:
    """List workers that live."""
    with _client() as client:
        rows = [
            (w["hostname"], w["queue"], _describe_gpus(w), _gib(w["disk_free_bytes"]), w["problem"] or "", w["id"])
            for w in client.get("/workers")["data"]
        ]
    _print_table(("host", "queue", "GPUs", "free disk", "problem", "worker"), rows)


@contextmanager
def _client() -> Iterator[Client]:
    settings = get_settings()
    url = settings.public_url or f"http://{settings.host}:{settings.port}"
    key = os.environ.get("MEDTUNE_API_KEY", "")
    if not key:
        fail("MEDTUNE_API_KEY is not set; `medtune serve` prints a key, `medtune keys create` makes one")
    try:
        with open_client(url, key) as client:
            yield client
    except ApiError as error:
        fail(str(error))
    except httpx.TransportError as error:
        fail(f"{url} does not answer: {error}")


def _load_request(file: Path) -> dict[str, Any]:
    try:
        request = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        fail(f"{file} is no JSON: {error}")
    if not isinstance(request, dict):
        fail(f"{file}: a job request is one JSON object")
    return request


def build_changes(changes: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1"]` is `{"a": {"b": 1}}`; a value that is no JSON is a text."""
    body: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        *path, name = key.split(".")
        if not equals or not all((*path, name)):
            fail(f"--set {change}: write KEY=JSON, such as training.max_steps=100")
        place = body
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                fail(f"--set {change}: {part} has a value already")
        place[name] = _parse_value(text)
    return body


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _describe(job: dict[str, Any]) -> str:
    waits = job["queue"]["reason"] if job["queue"] else ""
    parts = [job["status"], _step(job), _loss(job), (job["reason"] or {}).get("message", ""), waits]
    return f"{job['id']} " + ", ".join(part for part in parts if part)


def _describe_wait(job: dict[str, Any]) -> str:
    hint = f"; `medtune resume {job['id']}` lets it go on" if job["status"] == "paused" else ""
    return _describe(job) + hint


def _step(job: dict[str, Any]) -> str:
    progress = job["progress"]
    return f"step {progress['step']}/{progress['max_steps']}" if progress else ""


def _loss(job: dict[str, Any]) -> str:
    loss = (job["metrics"] or {}).get("loss")
    return f"loss {loss:.3f}" if loss is not None else ""


def _describe_gpus(worker: dict[str, Any]) -> str:
    if not worker["num_gpus"]:
        return "–"
    memory = worker["gpu_memory_bytes"]
    return f"{worker['num_gpus']} x {worker['gpu_name'] or 'GPU'}" + (f", {_gib(memory)}" if memory else "")


def _gib(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 2**30:.0f} GiB"


def _print_table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(*headings, box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
