"""Commands that talk to a running service, by `medtune.Client`: docs/cli.md."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from api.schemas import JobRead, PhiRead
from cli.completion import complete_job_ids
from cli.errors import fail
from cli.plan_table import describe_plan
from cli.progress import JobProgress, describe_loss, describe_steps
from jobs.status import DatasetStatus, JobStatus
from medtune import ApiError, Client, ConfigError
from medtune.connection import Json

_PIPE_WIDTH = 1000
"""For whoever reads the output by a program: a row is a line."""
_EXIT_CODES = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 1, JobStatus.CANCELLED: 3, JobStatus.HELD: 4}

JobId = Annotated[str, typer.Argument(metavar="JOB", autocompletion=complete_job_ids)]
AsJson = Annotated[bool, typer.Option("--json", help="The service's answer as it is.")]
Patience = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Go on for so long while the service is away.")]
_PATIENCE_SECONDS = 300


def add_commands(app: typer.Typer) -> None:
    of_one_job = (wait, show, logs, pause, resume, cancel, retry, delete, download)
    for command in (submit, plan, jobs, *of_one_job, datasets, workers):
        app.command()(command)


def submit(
    file: Annotated[Path, typer.Argument(help="A job request as JSON.", exists=True, dir_okay=False)],
    data: Annotated[Path | None, typer.Option(help="Rows to upload as its dataset first.", exists=True)] = None,
    dataset: Annotated[str | None, typer.Option(help="The id of its dataset, in place of the file's.")] = None,
) -> None:
    """Create a job and print its id."""
    with open_service() as client:
        request = _load_request(file)
        if dataset is not None:
            request["dataset"] = {"id": dataset}
        if data is not None:
            request["dataset"] = {"id": client.upload_dataset(data).id}
        typer.echo(client.create_job(request).id)


def plan(
    file: Annotated[Path, typer.Argument(help="A job request as JSON.", exists=True, dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Tell what a job would take, and queue nothing."""
    with open_service() as client:
        answer = client.plan_job(_load_request(file))
    if as_json:
        print_json(answer)
        return
    print_table(("", ""), describe_plan(answer.model_dump(mode="json")))
    for warning in answer.warnings:
        typer.echo(f"note: {warning.message}")


def wait(job_id: JobId, patience: Patience = _PATIENCE_SECONDS, as_json: AsJson = False) -> None:
    """Wait for a job's end, also while it is paused: exit 0 succeeded, 1 failed, 3 cancelled, 4 held."""
    progress = JobProgress(Console(stderr=True))
    with open_service(patience_seconds=patience, on_lost=progress.tell_lost) as client, progress:
        job = client.wait_for_job(job_id, on_poll=progress.show)
    if as_json:
        print_json(job)
    else:
        typer.echo(_describe(job))
    raise typer.Exit(_EXIT_CODES[job.status])


def jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only those with this status.")] = None,
    limit: Annotated[int, typer.Option(help="How many of the newest.")] = 20,
    model: Annotated[str | None, typer.Option(help="Only those of this base model.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with open_service() as client:
        page = client.list_jobs(status=status, model=model, limit=limit)
    if as_json:
        print_json(page)
        return
    print_table(
        ("job", "status", "model", "step", "loss", "name"),
        [(j.id, j.status, j.model, describe_steps(j), describe_loss(j), j.name or "") for j in page.data],
    )


def show(job_id: JobId) -> None:
    """Print a job, all of it, as JSON."""
    with open_service() as client:
        print_json(client.get_job(job_id))


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the job ends.")] = False,
    patience: Patience = _PATIENCE_SECONDS,
) -> None:
    """Print a job's log."""
    progress = JobProgress(Console(stderr=True))
    with open_service(patience_seconds=patience, on_lost=progress.tell_lost) as client:
        for chunk in client.follow_logs(job_id) if follow else client.iter_logs(job_id):
            sys.stdout.write(chunk.text)
            sys.stdout.flush()


def pause(job_id: JobId) -> None:
    """Pause a job; a running one saves a checkpoint first."""
    with open_service() as client:
        typer.echo(_describe(client.pause_job(job_id)))


def resume(job_id: JobId) -> None:
    """Let a paused job go on."""
    with open_service() as client:
        typer.echo(_describe(client.resume_job(job_id)))


def cancel(job_id: JobId) -> None:
    """Cancel a job."""
    with open_service() as client:
        typer.echo(_describe(client.cancel_job(job_id)))


def retry(
    job_id: JobId,
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
    with open_service() as client:
        typer.echo(client.retry_job(job_id, body).id)


def delete(
    name: Annotated[str, typer.Argument(metavar="ID", help="Of a job that ended, or of a dataset that no job names.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a job or a dataset with all of its files, for good, and print the id of the record."""
    folders = {"job": "jobs", "ds": "datasets"}
    kind, _, rest = name.partition("_")
    if kind not in folders or not rest.isalnum():
        fail(f"{name}: write the id of a job (job_…) or of a dataset (ds_…)")
    if not yes:
        typer.confirm(f"Delete {name} with all of its files, for good?", abort=True, err=True)
    with open_service() as client:
        deletion = client.delete(f"/{folders[kind]}/{name}")
    typer.echo(deletion["id"])


def download(job_id: JobId, out: Annotated[Path | None, typer.Option(help="File to write.")] = None) -> None:
    """Download a succeeded job's adapter."""
    path = out or Path(f"{job_id}.tar.gz")
    with open_service() as client:
        client.download_adapter(job_id, path)
    typer.echo(str(path))


def datasets(  # noqa: PLR0913  options
    upload: Annotated[
        Path | None, typer.Option(help="Rows to upload: JSONL, CSV or Parquet, also compressed.", exists=True)
    ] = None,
    phi_policy: Annotated[
        str | None,
        typer.Option(help="If identifiers of patients are found: report, reject, replace, or off: nobody looks."),
    ] = None,
    phi_strategy: Annotated[
        str | None, typer.Option(help="With replace: safe_harbor (numbers) or expert_determination (keyed hashes).")
    ] = None,
    patient_key: Annotated[
        str | None, typer.Option(help="With replace: a field of the rows; those of one patient share placeholders.")
    ] = None,
    overlap_policy: Annotated[
        str | None,
        typer.Option(help="If rows are there twice or judge the model: report, reject, or off: nobody looks."),
    ] = None,
    attest: Annotated[
        str | None, typer.Option(help="Id of a dataset to answer for, with --attested-by and --attestation.")
    ] = None,
    attested_by: Annotated[str | None, typer.Option(help="The name of the person who answers for it.")] = None,
    attestation: Annotated[str | None, typer.Option(help="Why its rows may be trained on as they are.")] = None,
    as_json: AsJson = False,
) -> None:
    """List datasets; upload one, wait for its check and say what it found; or answer for what was found in one."""
    with open_service() as client:
        if attest is not None:
            body = {"attested_by": attested_by or "", "attestation": attestation or ""}
            dataset = client.post(f"/datasets/{attest}/attest", body)
            typer.echo(f"{dataset['id']} attested by {dataset['phi']['attestation']['name']}")
            return
        if upload is None:
            page = client.list_datasets()
            if as_json:
                print_json(page)
                return
            rows = [(d.id, d.status, str(d.rows or ""), _describe_phi(d.phi), d.name) for d in page.data]
            print_table(("dataset", "status", "rows", "identifiers", "name"), rows)
            return
        uploaded = client.upload_dataset(
            upload,
            phi_policy=phi_policy,
            overlap_policy=overlap_policy,
            phi_strategy=phi_strategy,
            patient_key=patient_key,
            attested_by=attested_by,
            attestation=attestation,
        )
        checked = client.wait_for_dataset(uploaded.id)
        if as_json:
            print_json(checked)
        else:
            typer.echo(f"{checked.id} {checked.status}, {checked.rows} rows, {_describe_phi(checked.phi)}")
            for code, count in (checked.overlap.counts or {}).items():
                typer.echo(f"{count} rows: {code}")
        if checked.status == DatasetStatus.REJECTED:
            if not as_json:
                print_json(client.get(f"/datasets/{checked.id}/report"))
            raise typer.Exit(1)


def _describe_phi(phi: PhiRead) -> str:
    if phi.replaced is not None:
        return f"{sum(phi.replaced.values())} identifiers replaced; left: {_describe_findings(phi)}"
    return _describe_findings(phi)


def _describe_findings(phi: PhiRead) -> str:
    if phi.findings is None:
        return "not searched for identifiers"
    if not phi.findings:
        return f"no identifier found by rule set v{phi.rule_set}"
    classes = ", ".join(f"{count} {name}" for name, count in sorted((phi.classes or {}).items()))
    by = f"; attested by {phi.attestation.name}" if phi.attestation else ""
    return f"{phi.findings} identifiers ({classes}){by}"


def workers(as_json: AsJson = False) -> None:
    """List workers that live."""
    with open_service() as client:
        page = client.get("/workers")
    if as_json:
        print_json(page)
        return
    rows = [
        (w["hostname"], w["queue"], _describe_gpus(w), _gib(w["disk_free_bytes"]), w["problem"] or "", w["id"])
        for w in page["data"]
    ]
    print_table(("host", "queue", "GPUs", "free disk", "problem", "worker"), rows)


@contextmanager
def open_service(**options: Any) -> Iterator[Client]:
    """A client of the configured service; its errors end the command. `options`: those of `medtune.Client`."""
    try:
        with Client(**options) as client:
            yield client
    except (ApiError, ConfigError) as error:
        fail(str(error))


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


def _describe(job: JobRead) -> str:
    waits = job.queue.reason if job.queue else ""
    parts = [job.status, describe_steps(job), describe_loss(job), (job.reason or {}).get("message", ""), waits]
    return f"{job.id} " + ", ".join(part for part in parts if part)


def _describe_gpus(worker: dict[str, Any]) -> str:
    if not worker["num_gpus"]:
        return "–"
    memory = worker["gpu_memory_bytes"]
    return f"{worker['num_gpus']} x {worker['gpu_name'] or 'GPU'}" + (f", {_gib(memory)}" if memory else "")


def _gib(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 2**30:.0f} GiB"


def print_table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(box=None)
    for heading in headings:
        table.add_column(heading, overflow="fold")  # An id that is cut off is of no use.
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def print_json(answer: BaseModel | Json) -> None:
    """As the service wrote it, and as its document says."""
    content = answer.model_dump(mode="json") if isinstance(answer, BaseModel) else answer
    typer.echo(json.dumps(content, indent=2))
