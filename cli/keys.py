"""`medtune keys`: work on the database, where its URL and the service's secret key are."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session

from cli.errors import clear_errors, fail
from cli.operator import get_operator_settings
from cli.remote import AsJson, print_json, print_table
from jobs import api_keys, audit_log, repository
from jobs.database import Role, build_engine, build_sessions
from jobs.errors import MedtuneError
from jobs.models import ApiKey
from jobs.scopes import DEFAULT_SCOPES, Scope

keys = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke API keys.")


def add_commands(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys")


@keys.command()
def create(  # noqa: PLR0913  options
    name: str,
    tenant: Annotated[str, typer.Option(help="Whose jobs and datasets it sees.")] = api_keys.DEFAULT_TENANT,
    admin: Annotated[bool, typer.Option(help="May do everything, also what concerns all tenants.")] = False,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="It may only this; any number of times. Without: all work of a tenant.")
    ] = None,
    expires_days: Annotated[float | None, typer.Option(min=0, help="It opens nothing after so many days.")] = None,
    max_running: Annotated[int | None, typer.Option(min=0, help="As many of its jobs run at once.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=0, help="As many of its jobs may wait.")] = None,
    max_storage_bytes: Annotated[int | None, typer.Option(min=0, help="So much its datasets may take.")] = None,
) -> None:
    """Make a key and show it, once."""
    with _transaction() as session:
        key, value = api_keys.create_key(
            session,
            get_operator_settings().load_secret_key(),
            name=name,
            tenant_id=tenant,
            is_admin=admin,
            scopes=frozenset(scope) if scope else DEFAULT_SCOPES,
            expires_at=_get_end(expires_days),
            max_running=max_running,
            max_queued=max_queued,
            max_storage_bytes=max_storage_bytes,
        )
        told = {"name": name, "admin": key.is_admin, "scopes": key.scopes}
        audit_log.record_by_operator(session, tenant_id=tenant, action="create_key", object_id=key.id, **told)
        typer.echo(f"{key.id} of tenant {tenant}: {value}")


@keys.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """List keys; their values are not stored."""
    with _transaction() as session:
        found = [_describe_key(key) for key in repository.list_keys(session)]
    if as_json:
        print_json({"object": "list", "data": found, "has_more": False})
        return
    rows = [(k["id"], k["state"], k["tenant"], k["last_used_at"] or "never", k["name"], k["limits"]) for k in found]
    print_table(("key", "state", "tenant", "last used", "name", "limits"), rows)


@keys.command()
def rotate(
    key_id: str,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=720, help="The old value opens for so long, too; 0 when somebody else has it.")
    ] = 24,
) -> None:
    """Give a key a new value and show it, once; its id, scopes and jobs stay."""
    with _transaction() as session:
        key = repository.lock_key(session, key_id)
        secret_key = get_operator_settings().load_secret_key()
        value = api_keys.rotate_key(session, secret_key, key, datetime.timedelta(hours=overlap_hours))
        audit_log.record_by_operator(session, tenant_id=key.tenant_id, action="rotate_key", object_id=key_id)
        typer.echo(f"{key.id} of tenant {key.tenant_id}: {value}")


@keys.command()
def revoke(key_id: str) -> None:
    """Make a key invalid, at once."""
    with _transaction() as session:
        tenant = api_keys.revoke_key(session, key_id)
        if tenant is None:
            fail(f"there is no valid key {key_id}")
        audit_log.record_by_operator(session, tenant_id=tenant, action="revoke_key", object_id=key_id)


def _get_end(days: float | None) -> datetime.datetime | None:
    return None if days is None else datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def _describe_key(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "state": _describe_state(key),
        "tenant": key.tenant_id,
        "name": key.name,
        "scopes": key.scopes,
        "last_used_at": f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else None,
        "limits": _describe_limits(key),
    }


def _describe_state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= datetime.datetime.now(datetime.UTC):
        return "expired"
    return "admin" if key.is_admin else "valid"


def _describe_limits(key: ApiKey) -> str:
    limits = {"running": key.max_running, "waiting": key.max_queued, "bytes": key.max_storage_bytes}
    words = ", ".join(f"{limit} {name}" for name, limit in limits.items() if limit is not None)
    return f"at most {words}" if words else ""


@contextmanager
def _transaction() -> Iterator[Session]:
    with clear_errors(MedtuneError):
        engine = build_engine(get_operator_settings(), Role.API, pool_size=1)
        with build_sessions(engine).begin() as session:
            yield session
        engine.dispose()
