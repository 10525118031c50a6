"""`medtune replace`: placeholders in the place of identifiers, in a file of rows. It needs no server.

Exits with 0 when the new file is there, with 2 when it is not; then nothing of it is.
"""

import contextlib
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from cli.scan import FAILED
from trainer_core.data.phi.ner import NerModel
from trainer_core.data.phi.replacement import ReplacementReport, Replacer
from trainer_core.data.phi.site_patterns import load_site_patterns
from trainer_core.data.phi.strategy import Strategy
from trainer_core.data.phi.vault import load_keyring
from trainer_core.errors import TrainerError, is_disk_full


def add_commands(app: typer.Typer) -> None:
    app.command()(replace)


def replace(  # noqa: PLR0913 - the options of a command
    file: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet; the first two also in gzip or zstd.")],
    out: Annotated[Path, typer.Argument(help="The new file, as JSONL. One that is there is not overwritten.")],
    strategy: Annotated[
        Strategy, typer.Option(help="Numbers within a scope, or keyed hashes that are the same in every file.")
    ] = Strategy.SAFE_HARBOR,
    patient_key: Annotated[
        str | None, typer.Option(help="A field of the rows: rows with the same value share their placeholders.")
    ] = None,
    vault: Annotated[
        Path | None, typer.Option(help="A new file for what the placeholders stand for, encrypted.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The key file, from `medtune vault key`.")] = None,
    patterns: Annotated[Path | None, typer.Option("--patterns", help="A JSON file with patterns of your own.")] = None,
    ner: Annotated[Path | None, typer.Option(help="The folder of a token classifier of your own.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result is the same for any number.")] = 1,
) -> None:
    """Put placeholders such as [PATIENT_1] in the place of what `medtune scan` finds, the same for the same person."""
    try:
        with NerModel(ner) if ner else contextlib.nullcontext() as model:
            replacer = Replacer(
                strategy,
                site_patterns=load_site_patterns(patterns) if patterns else [],
                patient_key=patient_key,
                keyring=load_keyring(key) if key else None,
                num_workers=workers,
                ner=model,
            )
            report = replacer.replace_file(file, out, vault=vault)
    except TrainerError as error:
        _fail(f"{error}. {error.remedy}")
    except OSError as error:
        _fail(_describe(error, file))
    _print_report(report, out)


def _describe(error: OSError, file: Path) -> str:
    if is_disk_full(error):
        return f"{error.strerror or error}: free some where the new files are to be. Nothing of them was left"
    return f"{error.filename or file}: {error.strerror or error}"


def _print_report(report: ReplacementReport, out: Path) -> None:
    table = Table("class", "replaced")
    for phi_class, count in sorted(report.replaced.items(), key=lambda item: -item[1]):
        table.add_row(phi_class, f"{count:,}")
    if report.replaced:
        Console().print(table)
    typer.echo(
        f"{out}: {report.changed_rows:,} of {report.rows:,} rows changed, {report.tokens:,} placeholders"
        f" ({report.strategy}, rule set v{report.rule_set})"
    )


def _fail(message: str) -> NoReturn:
    typer.echo(f"medtune: {message}", err=True)
    raise typer.Exit(FAILED)
