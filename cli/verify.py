"""`medtune verify`: what can be proven of an adapter's folder. It needs no server, no network and no torch.

Exits with 0 when everything checks out, 1 when something does not, 2 when it cannot be told.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import fail
from jobs.settings import get_settings
from jobs.signing_key import find_public_key
from trainer_core.adapters.proof import Check, Result, prove_adapter

_EXIT_CODES = {Result.PASSED: 0, Result.FAILED: 1, Result.UNKNOWN: 2}


def add_commands(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_DIR", help="The folder `adapter` of the archive.")],
    public_key: Annotated[
        Path | None, typer.Option(help="Of whoever signed it, as PEM. Without it, this installation's.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="The base model's folder, to compare with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check an adapter's signature, files, weights and documents, without loading it."""
    if not adapter.is_dir():
        fail(f"{adapter} is no folder; unpack the archive and name the folder `adapter` in it", 2)
    checks = prove_adapter(adapter, public_key=public_key or find_public_key(get_settings()), base=base)
    result = _sum_up(checks)
    if as_json:
        typer.echo(json.dumps({"result": result, "checks": [check.model_dump() for check in checks]}))
    else:
        for check in checks:
            remedy = f" -> {check.remedy}" if check.remedy else ""
            typer.echo(f"{check.result:8} {check.name}: {check.message}{remedy}")
    raise typer.Exit(_EXIT_CODES[result])


def _sum_up(checks: list[Check]) -> Result:
    """One that failed says more than one that cannot be told."""
    results = {check.result for check in checks}
    return next((result for result in (Result.FAILED, Result.UNKNOWN) if result in results), Result.PASSED)
