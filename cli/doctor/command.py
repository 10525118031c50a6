"""The command itself: every check in turn, a line or a JSON entry for each finding, and the exit code."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated

import typer
from pydantic import ValidationError

from cli.doctor.finding import ERROR, OK, Finding
from cli.doctor.keys import check_signing_key, check_vault_key
from cli.doctor.leftovers import check_leftovers
from cli.doctor.libraries import check_libraries
from cli.doctor.machine import check_disk, check_gpus, check_models, check_namespaces, check_store
from cli.doctor.rows import check_rows, check_workers
from cli.doctor.servers import check_database, check_redis, find_embedded_servers
from jobs.settings import Settings, get_settings


def add_commands(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="End orphaned processes of this machine and clean up after them.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Do not load torch, bitsandbytes and DeepSpeed.")] = False,
) -> None:
    """Check this machine, its servers and the jobs' rows, and say what to do. Exits with 1 when something is broken."""
    logging.disable(logging.WARNING)  # What they would say is in the findings.
    findings = []
    for finding in examine(fix=fix, quick=quick):
        findings.append(finding)
        if not as_json:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            typer.echo(f"{finding.level:8} {finding.check}: {finding.message}{remedy}")
    is_ok = all(finding.level != ERROR for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": is_ok, "checks": [dataclasses.asdict(finding) for finding in findings]}))
    raise typer.Exit(0 if is_ok else 1)


def examine(*, fix: bool, quick: bool) -> Iterator[Finding]:
    try:
        settings = get_settings()
    except ValidationError as error:
        fields = "; ".join(f"MEDTUNE_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        yield Finding("settings", ERROR, fields, "correct the variable; docs/configuration.md has an example of each")
        return
    yield Finding("settings", OK, f"home {settings.home}")
    settings = find_embedded_servers(settings)
    checks = [check_database, check_redis, check_store, check_models, check_gpus, check_libraries]
    checks += [check_namespaces, check_disk, check_signing_key, check_vault_key, check_workers, check_rows]
    checks.append(partial(check_leftovers, fix=fix))
    for check in checks:
        if not (quick and check is check_libraries):
            yield from _outlive(check, settings)


def _outlive(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    """A folder that this user may not enter is a finding, and not the end."""
    try:
        yield from check(settings)
    except OSError as error:
        yield Finding("files", ERROR, str(error), "see that the service's user owns MEDTUNE_HOME and may read the file")
