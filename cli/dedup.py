"""`medtune dedup`: rows that are there twice, nearly twice, or also in what the model is judged by. It needs no server.

Exits with 1 when anything was found, 0 when nothing was, 2 when a file, or a row of it, could not be read.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.errors import fail
from cli.scan import FAILED, FOUND
from trainer_core.data.overlap.cleaning import write_without
from trainer_core.data.overlap.item_index import ItemIndex
from trainer_core.data.overlap.items import iter_benchmarks, iter_probes
from trainer_core.data.overlap.report import OverlapFinding, OverlapReport
from trainer_core.data.overlap.search import find_overlap
from trainer_core.errors import TrainerError

_FIRST_FINDINGS = 20


def add_commands(app: typer.Typer) -> None:
    app.command()(dedup)


def dedup(
    file: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet; the first two also in gzip or zstd.")],
    validation: Annotated[Path | None, typer.Option(help="A file of rows that validate.")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="A file or folder of benchmark questions; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="A new file for the rows that may stay, as JSONL. None is overwritten.")
    ] = None,
) -> None:
    """Look for duplicates, and for rows that validate, that a benchmark asks, or that are safety probes."""
    try:
        items = ItemIndex([*iter_probes(), *iter_benchmarks(against or [])])
        report, found = find_overlap(file, validation=validation, items=items)
        if not report.rows and not report.unreadable_rows:
            fail(f"{file.name} holds no rows", FAILED)
        num_left = write_without(file, found, out) if out else None
    except TrainerError as error:
        fail(f"{error.message.removesuffix('.')}. {error.remedy}", FAILED)
    except OSError as error:
        fail(f"{error.filename or file}: {error.strerror or error}", FAILED)
    if as_json:
        typer.echo(report.model_dump_json(indent=1))
    else:
        _print_table(report)
    if num_left is not None:
        typer.echo(f"{out}: {num_left:,} of {report.rows:,} rows", err=as_json)
    if report.unreadable_rows:
        typer.echo(f"medtune: {file.name}: {report.unreadable_rows:,} rows could not be read", err=True)
    if report.num_findings:
        raise typer.Exit(FOUND)
    if report.unreadable_rows:
        raise typer.Exit(FAILED)


def _print_table(report: OverlapReport) -> None:
    if report.findings:
        table = Table("code", "rows", "same as", "similarity")
        for finding in report.findings[:_FIRST_FINDINGS]:
            table.add_row(finding.code, _list_rows(finding), _name_source(finding), f"{finding.similarity:.2f}")
        Console().print(table)
    if report.num_findings > _FIRST_FINDINGS:
        typer.echo(f"The first {_FIRST_FINDINGS} of {report.num_findings:,} findings; --json has more.")
    counts = ", ".join(f"{count:,} {code}" for code, count in report.counts.items())
    typer.echo(f"{report.rows:,} rows: {counts or 'nothing found'}")


def _list_rows(finding: OverlapFinding) -> str:
    more = f" and {finding.num_rows - 5:,} more" if finding.num_rows > 5 else ""
    return ", ".join(map(str, finding.rows[:5])) + more


def _name_source(finding: OverlapFinding) -> str:
    row = f"row {finding.source_row}" if finding.source_row is not None else ""
    return ", ".join(part for part in (finding.source or "", row) if part)
