"""`medtune models`: list base models of a running service; check, register and fetch them where MODELS_FILE is."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import clear_errors, fail
from cli.remote import open_service, print_json, print_table
from jobs.errors import MedtuneError
from jobs.model_registry import add_model, list_models, pull_model
from jobs.model_report import Method, ModelReport, Note, build_report
from jobs.models_file import ModelEntry, ModelsFileInvalid
from jobs.settings import get_settings
from trainer_core.planning.compatibility import CHAT_TEMPLATES
from trainer_core.planning.hardware import read_hardware
from worker.launcher import build_environment

models = typer.Typer(invoke_without_command=True, help="Base models: list, check, register, fetch.")


def add_commands(app: typer.Typer) -> None:
    app.add_typer(models, name="models")


@models.callback()
def list_(context: typer.Context) -> None:
    """List a running service's base models; or check, register and fetch them."""
    if context.invoked_subcommand is None:
        with open_service() as client:
            rows = [(m["id"], m["source"], "yes" if m["trainable"] else "no") for m in client.get("/models")["data"]]
        print_table(("model", "source", "trainable"), rows)


@models.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="A registered model, or a folder.")],
    load: Annotated[
        bool, typer.Option("--load", help="Also load all of it but the weights, where the trainer is installed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether a model can be trained, how, and in how much memory. Exit 0: it can; 1: it cannot, and why."""
    with clear_errors(ModelsFileInvalid):
        model = _find(name)
        report = build_report(model, read_hardware(Path.cwd()))
    if load and report.trainable and (problem := _try_to_load(model)) is not None:
        report.trainable = False
        report.problems.append(problem)
    if as_json:
        print_json(report)
    else:
        typer.echo(_describe(report))
    raise typer.Exit(0 if report.trainable else 1)


@models.command()
def add(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The name that jobs use.")],
    source: Annotated[str, typer.Argument(help="A folder, or a hub id such as org/name.")],
    revision: Annotated[
        str | None, typer.Option(help="Of a hub id: the full commit, or what the hub resolves.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Read it first.")
    ] = False,
    chat_template: Annotated[
        str | None, typer.Option(help=f"A file with a Jinja template, or one of {', '.join(CHAT_TEMPLATES)}.")
    ] = None,
) -> None:
    """Register a model in MODELS_FILE, pinned to a commit, or to the digest of a folder's files."""
    folder = Path(source).expanduser()
    is_folder = folder.is_dir() or source.startswith((".", "/", "~"))
    entry = ModelEntry(
        id=id_,
        source=str(folder.absolute()) if is_folder else source,
        revision=revision,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template and _read_template(chat_template),
    )
    with _clear_refusals():
        added = add_model(get_settings(), entry)
    pin = added.digest or added.revision
    fetch = "" if Path(added.source).is_absolute() else f"; `medtune models pull {id_}` fetches it"
    typer.echo(f"{id_} is registered, pinned to {pin}{fetch}")


@models.command()
def pull(id_: Annotated[str, typer.Argument(metavar="ID", help="A registered model of a hub.")]) -> None:
    """Fetch a registered model's pinned commit from the hub, verify it, and say whether it can be trained."""
    with _clear_refusals():
        model = pull_model(get_settings(), id_)
        report = build_report(model, read_hardware(Path.cwd()))
    typer.echo(_describe(report))
    raise typer.Exit(0 if report.trainable else 1)


@contextmanager
def _clear_refusals() -> Iterator[None]:
    """With what to do."""
    try:
        with clear_errors(ModelsFileInvalid, OSError):
            yield
    except MedtuneError as error:
        remedy = error.details.get("remedy")
        fail(f"{error.message} ({error.code})" + (f"; {remedy}" if remedy else ""))


def _find(name: str) -> ModelEntry:
    model = next((model for model in list_models(get_settings()) if model.id == name), None)
    if model is not None:
        return model
    if not Path(name).is_dir():
        fail(f"there is neither a registered model nor a folder {name!r}")
    folder = Path(name).resolve()
    return ModelEntry(id=folder.name, source=str(folder))


def _try_to_load(model: ModelEntry) -> Note | None:
    """In a process of its own, with a trainer's environment, and no network for a hub."""
    trust = ["--trust-remote-code"] if model.trust_remote_code else []
    command = [*get_settings().trainer_command, "check-model", model.source, *trust]
    environment = build_environment(os.environ) | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        problem = json.loads(result.stdout.splitlines()[-1])
        return Note.model_validate(problem) if problem else None
    except (IndexError, ValueError):
        last = (result.stderr.splitlines() or [f"exit code {result.returncode}"])[-1]
        remedy = "Is medtune installed with the extra `train` here?"
        return Note(code="trainer_failed", message=f"The trainer could not load it: {last}", remedy=remedy)


def _read_template(value: str) -> str:
    if value in CHAT_TEMPLATES:
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--chat-template {value}: neither one of {', '.join(CHAT_TEMPLATES)} nor a readable file: {error}")


def _describe(report: ModelReport) -> str:
    pin = report.digest or report.revision or "not pinned"
    lines = [
        f"{report.id}: {'can be trained' if report.trainable else 'cannot be trained'}",
        f"  source      {report.source}",
    ]
    if report.trainable:
        size = f"{report.num_parameters:,} parameters, {_gib(report.bytes_on_disk or 0)} on disk"
        lines += [f"  pin         {pin}", f"  size        {size}", f"  template    {report.chat_template}"]
        lines += [line for method in report.methods for line in _describe_method(method)]
    for note in (*report.problems, *report.notes):
        lines.append(f"  {note.code}: {note.message}" + (f" -> {note.remedy}" if note.remedy else ""))
    return "\n".join(lines)


def _describe_method(method: Method) -> list[str]:
    if method.least_bytes is None:
        return [f"  {method.name:10}  cannot be: {method.refusal}"]
    fits = [f"{card.name} ({_gib(card.peak_bytes)})" for card in method.cards if card.peak_bytes is not None]
    where = ", ".join(fits) or "no single card; see several GPUs in docs/training.md"
    return [f"  {method.name:10}  from {_gib(method.least_bytes)}; fits: {where}"]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
