"""`medtune import-openai DIR`. Exits with 1 when anything of the folder was not taken."""

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import fail
from cli.openai_import.carrying_out import Uploads, build_request, submit, write_request
from cli.openai_import.export import Export, load_export
from cli.openai_import.planning import Taken, plan_import
from cli.openai_import.table import TableError, load_table, write_table
from cli.remote import open_service, print_json, print_table
from medtune import ApiError

Json = dict[str, Any]


def add_commands(app: typer.Typer) -> None:
    app.command(name="import-openai")(import_openai)


def import_openai(  # noqa: PLR0913  options
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="OpenAI's objects as JSON, and the files' contents.", exists=True),
    ],
    table: Annotated[
        Path | None, typer.Option(help="TOML: what models and hyperparameters become.", exists=True)
    ] = None,
    write_table_to: Annotated[
        Path | None, typer.Option("--write-table", help="Write such a table to edit, for these jobs; do nothing else.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the jobs' requests.")] = Path("imported-jobs"),
    is_submitted: Annotated[bool, typer.Option("--submit", help="Create the jobs, too.")] = False,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; needs no service.")] = False,
    phi_policy: Annotated[
        str | None, typer.Option(help="Of the uploads, as in `medtune datasets`: report, reject or replace.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make files and jobs of OpenAI's fine-tuning again here: uploads files, writes requests, submits if told so."""
    try:
        export = load_export(folder)
        if write_table_to is not None:
            _write_table(write_table_to, export)
            return
        plan = plan_import(export, load_table(table))
    except (TableError, OSError) as error:
        fail(str(error))
    if plan.unmapped:
        _refuse_unmapped(plan.unmapped, folder)
    if not export.jobs and not export.unreadable:
        fail(f"{folder} holds no object of the kind fine_tuning.job")
    results = [
        _describe(refused.job.id, "not taken", code=refused.code, reason=refused.reason) for refused in plan.refused
    ]
    if is_dry:
        results += [_describe_dry(taken) for taken in plan.taken]
    else:
        results += _carry_out(plan.taken, out, phi_policy, is_submitted)
    unreadable = [found.model_dump() for found in export.unreadable]
    if as_json:
        print_json({"jobs": results, "unreadable": unreadable})
    else:
        _print(results, unreadable)
    if unreadable or any(result["status"] == "not taken" for result in results):
        raise typer.Exit(1)


def _write_table(path: Path, export: Export) -> None:
    try:
        write_table(path, Counter(job.model for job in export.jobs.values()))
    except FileExistsError:
        fail(f"{path} exists; edit it, or choose another name")
    typer.echo(f"{path} written: give each model a base of `medtune models`, then call again with --table {path}")


def _refuse_unmapped(unmapped: Counter[str], folder: Path) -> None:
    models = ", ".join(f"{model} ({count} jobs)" for model, count in sorted(unmapped.items()))
    fail(
        f"no base model is named for {models}; nothing was done. Give each a line under [models] of the file after "
        f"--table; `medtune import-openai {folder} --write-table FILE` writes one to edit"
    )


def _carry_out(plan: Iterable[Taken], out: Path, phi_policy: str | None, is_submitted: bool) -> list[Json]:
    results = []
    with ExitStack() as stack:
        client = stack.enter_context(open_service())
        uploads = Uploads(client, phi_policy)
        for taken in plan:
            result = _describe(taken.job.id, "written", model=taken.request["model"])
            results.append(result)
            try:
                request = build_request(taken, uploads)
                result |= {"dataset": request["dataset"]["id"], "validation": request.get("validation", {}).get("id")}
                result["request"] = str(write_request(request, out, taken.job.id))
                if is_submitted:
                    result["job"], is_new = submit(client, request)
                    result["status"] = "submitted" if is_new else "there already"
            except ApiError as error:
                result |= {"status": "not taken", "code": error.code, "reason": str(error)}
            except OSError as error:
                fail(str(error))
    return results


def _describe_dry(taken: Taken) -> Json:
    validation = str(taken.validation) if taken.validation else None
    return _describe(
        taken.job.id,
        "would be taken",
        model=taken.request["model"],
        request=taken.request,
        dataset=str(taken.training),
        validation=validation,
    )


def _describe(openai_job: str, status: str, **facts: Any) -> Json:
    names = ("model", "dataset", "validation", "request", "job", "code", "reason")
    return {"openai_job": openai_job, "status": status, **dict.fromkeys(names), **facts}


def _print(results: list[Json], unreadable: list[Json]) -> None:
    columns = ("openai_job", "status", "model", "dataset", "job", "reason")
    rows = [tuple(str(result[name] or "") for name in columns) for result in results]
    rows += [(found["place"], "not read", "", "", "", found["reason"]) for found in unreadable]
    print_table(("OpenAI's job", "", "model", "rows", "job", "why not"), rows)
