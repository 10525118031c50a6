"""`medtune export JOB`: a job's adapter merged into its base."""

import time
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import fail
from cli.remote import JobId, open_service
from jobs.status import ExportStatus
from medtune.connection import persist

_POLL_SECONDS = 1.0


def add_commands(app: typer.Typer) -> None:
    app.command()(export)


def export(job_id: JobId, out: Annotated[Path | None, typer.Option(help="File to write.")] = None) -> None:
    """Have a job's adapter merged into its base, wait, and download the model."""
    path = out or Path(f"{job_id}-merged.tar")
    with open_service() as client:
        found = client.post(f"/jobs/{job_id}/export")
        while found["status"] == ExportStatus.MERGING:
            time.sleep(_POLL_SECONDS)
            found = persist(
                lambda: client.get(f"/jobs/{job_id}/export"),
                patience_seconds=client.patience_seconds,
                on_lost=client.on_lost,
            )
        if found["status"] == ExportStatus.FAILED:
            reason = found["reason"]
            fail(f"{reason['message']} ({reason['code']}); {reason['remedy']}")
        client.download_file(f"/jobs/{job_id}/export/model", path)
    typer.echo(str(path))
