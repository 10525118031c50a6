"""`medtune rows JOB`: how a job's rows look to its model, and what of them is trained."""

import json
from typing import Any

import typer

from cli.remote import AsJson, JobId, open_service, print_json, print_table


def add_commands(app: typer.Typer) -> None:
    app.command()(rows)


def rows(job_id: JobId, as_json: AsJson = False) -> None:
    """Show how long a job's rows are in tokens, and the first of them as they are trained on."""
    with open_service() as client:
        report = client.get(f"/jobs/{job_id}/rows")
    if as_json:
        print_json(report)
        return
    _print_lengths(report)
    for sample in report["sample"]:
        typer.echo(f"\nline {sample['line']}: {sample['tokens']:,} tokens, {sample['trained_tokens']:,} trained")
        for run in sample["runs"]:
            typer.echo(f"{'trained' if run['trained'] else 'read':>8}  {json.dumps(run['text'], ensure_ascii=False)}")


def _print_lengths(report: dict[str, Any]) -> None:
    counts = {int(limit): count for limit, count in report["lengths"].items()}
    print_table(("tokens, at most", "rows"), [(f"{limit:,}", f"{counts[limit]:,}") for limit in sorted(counts)])
    fates = {"left out": "dropped_rows", "cut": "truncated_rows", "cut into several": "split_rows"}
    told = ", ".join(f"{report[name]:,} {fate}" for fate, name in fates.items() if report[name])
    limit, longest = report["max_seq_len"], report["longest_row_tokens"]
    typer.echo(
        f"{report['too_long_rows']:,} rows are longer than max_seq_len = {limit:,}"
        f"{': ' + told if told else ''}; the longest has {longest:,} tokens"
    )
