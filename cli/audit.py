"""`medtune audit`: who did what, and whether that record is whole. It works on the database, where its URL is."""

import json
from typing import Annotated

import typer

from cli.errors import clear_errors, fail
from cli.operator import get_operator_settings
from jobs import audit_log
from jobs.database import Role, build_engine, build_sessions

audit = typer.Typer(no_args_is_help=True, help="Read and verify the record of who did what.")


def add_commands(app: typer.Typer) -> None:
    app.add_typer(audit, name="audit")


@audit.command(name="list")
def list_(
    tenant: Annotated[str | None, typer.Option(help="Only its entries.")] = None,
    object_id: Annotated[
        str | None, typer.Option("--object", help="Only those about this job, dataset or key.")
    ] = None,
) -> None:
    """Print every entry as a line of JSON, the oldest first."""
    with clear_errors():
        engine = build_engine(get_operator_settings(), Role.WORKER, pool_size=1)
        with build_sessions(engine)() as session:
            for entry in audit_log.iter_entries(session, tenant_id=tenant, object_id=object_id):
                typer.echo(json.dumps({**json.loads(entry.record), "hash": entry.hash.hex()}))
        engine.dispose()


@audit.command()
def verify(
    contains: Annotated[
        str | None, typer.Option(metavar="HASH", help="A hash noted earlier: its entry must still be there.")
    ] = None,
) -> None:
    """Compute every hash again. Exits with 1 when an entry was changed, deleted or added by hand."""
    with clear_errors():
        engine = build_engine(get_operator_settings(), Role.WORKER, pool_size=1)
        with build_sessions(engine)() as session:
            chains = list(audit_log.verify_chains(session, contains))
        engine.dispose()
    for chain in chains:
        typer.echo(f"{chain.tenant_id or '-'}: {chain.num_entries} entries, last hash {chain.hash or 'none'}")
    if broken := [f"{chain.tenant_id or '-'}: {chain.problem}" for chain in chains if chain.problem]:
        fail("the audit log is not whole: " + "; ".join(broken))
