"""`medtune migrate` and `medtune keys`: work on the database, where its URL and the service's secret key are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from cli.errors import clear_errors, fail
from jobs import api_keys, repository
from jobs.database import Role, build_engine, build_sessions
from jobs.models import ApiKey
from jobs.schema import migrate as migrate_schema
from jobs.settings import get_settings

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")


def add_commands(app: typer.Typer) -> None:
    app.command()(migrate)
    app.add_typer(keys, name="keys")


def migrate() -> None:
    """Bring the database to the newest schema."""
    with clear_errors():
        engine = build_engine(get_settings(), role=None)
        migrate_schema(engine)
        engine.dispose()
        typer.echo("the database has the newest schema")


@keys.command()
def create(
    name: str,
    tenant: Annotated[str, typer.Option(help="Whose jobs and datasets it sees.")] = api_keys.DEFAULT_TENANT,
    admin: Annotated[bool, typer.Option(help="May change what belongs to all tenants.")] = False,
    max_running: Annotated[int | None, typer.Option(min=0, help="As many of its jobs run at once.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=0, help="As many of its jobs may wait.")] = None,
) -> None:
    """Make a key and show it, once."""
    with _transaction() as session:
        key, value = api_keys.create_key(
            session,
            get_settings().load_secret_key(),
            name=name,
            tenant_id=tenant,
            is_admin=admin,
            max_running=max_running,
            max_queued=max_queued,
        )
        typer.echo(f"{key.id} of tenant {tenant}: {value}")


@keys.command(name="list")
def list_() -> None:
    """List keys; their values are not stored."""
    with _transaction() as session:
        for key in repository.list_keys(session):
            state = "revoked" if key.revoked_at else "admin" if key.is_admin else "valid"
            typer.echo(f"{key.id}  {state:8} {key.tenant_id:16} {key.name}{_describe_limits(key)}")


@keys.command()
def revoke(key_id: str) -> None:
    """Make a key invalid, at once."""
    with _transaction() as session:
        if not api_keys.revoke_key(session, key_id):
            fail(f"there is no valid key {key_id}")


def _describe_limits(key: ApiKey) -> str:
    limits = {"running": key.max_running, "waiting": key.max_queued}
    words = ", ".join(f"{limit} {name}" for name, limit in limits.items() if limit is not None)
    return f"  (at most {words})" if words else ""


@contextmanager
def _transaction() -> Iterator[Session]:
    with clear_errors():
        engine = build_engine(get_settings(), Role.API, pool_size=1)
        with build_sessions(engine).begin() as session:
            yield session
        engine.dispose()
