"""`medtune lineage`: which datasets have these rows, and which adapters were trained on them. Rows are hashed here, and
only their hashes leave this process.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import clear_errors, fail
from cli.operator import get_operator_settings
from cli.remote import open_service
from jobs import audit_log, repository
from jobs.database import build_engine, build_sessions
from jobs.vault_key import get_vault_key_file
from trainer_core.data.formats import RowError
from trainer_core.data.phi.vault import load_keyring
from trainer_core.data.row_hashes import hash_row, iter_row_hashes
from trainer_core.errors import ConfigurationError

Find = Callable[[bytes], dict[str, Any]]


def add_commands(app: typer.Typer) -> None:
    app.command()(lineage)


def lineage(
    file: Annotated[str, typer.Argument(help="Rows: JSONL, CSV or Parquet; - for JSON lines on standard input.")],
    uploaded: Annotated[
        bool,
        typer.Option(
            "--uploaded",
            help="Also rows as they were uploaded, before identifiers were replaced, of every tenant: the operator's, "
            "with the database's URL and the vault's key.",
        ),
    ] = False,
) -> None:
    """Print for each row, as a line of JSON, the datasets that have it and the jobs that were trained on those."""
    with clear_errors(OSError, ConfigurationError, RowError):
        if uploaded:
            _find_by_operator(_iter_hashes(file))
            return
        with open_service() as client:
            for row_hash in _iter_hashes(file):
                typer.echo(json.dumps(client.post("/lineage/rows", {"sha256": row_hash.hex()})))


def _iter_hashes(file: str) -> Iterator[bytes]:
    if file != "-":
        yield from iter_row_hashes(Path(file))
        return
    for line in filter(str.strip, sys.stdin):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            fail("standard input: every line has to be a JSON object", exit_code=2)
        yield hash_row(row)


def _find_by_operator(hashes: Iterator[bytes]) -> None:
    settings = get_operator_settings()
    keyring = load_keyring(get_vault_key_file(settings))
    engine = build_engine(settings, role=None, pool_size=1)
    sessions = build_sessions(engine)
    for row_hash in hashes:
        with sessions.begin() as session:
            versions = repository.list_key_versions_of_rows(session)
            forms = [row_hash, *(keyring.digest_row(row_hash, version) for version in versions)]
            datasets = repository.list_datasets_with_row(session, forms)
            jobs = repository.list_jobs_of_datasets(session, [dataset.id for dataset in datasets])
            for dataset in datasets:
                audit_log.record_by_operator(
                    session, tenant_id=dataset.tenant_id, action="find_row", object_id=dataset.id
                )
        found = {
            "row_sha256": row_hash.hex(),
            "datasets": [{"id": dataset.id, "tenant": dataset.tenant_id, "name": dataset.name} for dataset in datasets],
            "jobs": [{"id": job.id, "status": job.status, "adapter": job.adapter_state} for job in jobs],
        }
        typer.echo(json.dumps(found))
    engine.dispose()
