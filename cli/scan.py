"""`medtune scan`: looks for identifiers of patients in a file of rows. It needs no server, and sends nothing anywhere.

Exits with 1 when anything was found, 0 when nothing was, 2 when the file, or a row of it, could not be read.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trainer_core.data.phi.file_scan import FileFinding, UnreadableRow, scan_file
from trainer_core.data.phi.ner import NerModel
from trainer_core.data.phi.scanner import RULE_SET
from trainer_core.data.phi.site_patterns import SitePattern, load_site_patterns
from trainer_core.errors import ConfigurationError

FOUND, FAILED = 1, 2
_FIRST_ROWS = 5


def add_commands(app: typer.Typer) -> None:
    app.command()(scan)


def scan(
    file: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet; the first two also in gzip or zstd.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with every finding.")] = False,
    patterns: Annotated[Path | None, typer.Option("--patterns", help="A JSON file with patterns of your own.")] = None,
    ner: Annotated[Path | None, typer.Option("--ner", help="The folder of a token classifier of your own.")] = None,
) -> None:
    """Look for names, dates, numbers and addresses that identify people. Prints places and classes, never the texts."""
    tally = Tally()
    try:
        site_patterns = load_site_patterns(patterns) if patterns else []
        with NerModel(ner) if ner else contextlib.nullcontext() as model:
            findings = tally.follow(file, site_patterns, model)
            if as_json:
                _print_json(findings, tally)
            else:
                for _ in findings:
                    pass
                _print_table(tally)
    except ConfigurationError as error:
        _fail(f"{error.message}. {error.remedy}")
    except BrokenPipeError:  # Whoever read has seen enough: click ends quietly.
        raise
    except OSError as error:
        _fail(f"{error.filename or file}: {error.strerror or error}")
    if tally.counts:
        raise typer.Exit(FOUND)
    if tally.num_unreadable or not tally.num_rows:
        raise typer.Exit(FAILED)


class Tally:
    """What was found so far: counts and the first rows of each class, however large the file is."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_unreadable = 0
        self.counts: Counter[str] = Counter()
        self.first_rows: dict[str, list[int]] = {}

    def follow(
        self, file: Path, site_patterns: list[SitePattern], ner: NerModel | None = None
    ) -> Iterator[FileFinding]:
        """Every finding of the file, counted. What cannot be read is told on standard error."""
        for row, found in scan_file(file, site_patterns, ner):
            self.num_rows += row > 0
            if isinstance(found, UnreadableRow):
                self.num_unreadable += 1
                typer.echo(f"medtune: {file.name}, row {row}: not scanned. {found.message}", err=True)
                continue
            for finding in found:
                self._add(finding)
                yield finding
        if not self.num_rows and not self.num_unreadable:
            typer.echo(f"medtune: {file.name} holds no rows", err=True)

    def _add(self, finding: FileFinding) -> None:
        self.counts[finding.phi_class] += 1
        rows = self.first_rows.setdefault(finding.phi_class, [])
        if len(rows) < _FIRST_ROWS and finding.row not in rows:
            rows.append(finding.row)


def _print_json(findings: Iterator[FileFinding], tally: Tally) -> None:
    """Finding by finding, so that a large file takes no memory."""
    separator = '{"findings": ['
    for finding in findings:
        typer.echo(separator + finding.model_dump_json(by_alias=True), nl=False)
        separator = ",\n"
    if not tally.counts:
        typer.echo(separator, nl=False)
    end = {"rows": tally.num_rows, "unreadable_rows": tally.num_unreadable, "rule_set": RULE_SET}
    typer.echo("], " + json.dumps({**end, "summary": dict(tally.counts.most_common())})[1:])


def _print_table(tally: Tally) -> None:
    if not tally.counts:
        if tally.num_rows and not tally.num_unreadable:
            typer.echo(f"{tally.num_rows:,} rows: no identifier found by rule set v{RULE_SET}")
        return
    table = Table("class", "findings", "first rows")
    for phi_class, count in tally.counts.most_common():
        table.add_row(phi_class, f"{count:,}", ", ".join(map(str, tally.first_rows[phi_class])))
    Console().print(table)
    num_findings = tally.counts.total()
    noun = "finding" if num_findings == 1 else "findings"
    typer.echo(f"{tally.num_rows:,} rows, {num_findings:,} {noun} by rule set v{RULE_SET}")


def _fail(message: str) -> None:
    typer.echo(f"medtune: {message}", err=True)
    raise typer.Exit(FAILED)
