"""`medtune vault`: keys for the vault, and the way back for who holds one: from a file of `medtune replace`, or from
the database, where its URL is.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from cli.errors import clear_errors, fail
from cli.operator import get_operator_settings
from jobs import audit_log, repository
from jobs.database import build_engine, build_sessions
from jobs.errors import NotFound
from jobs.settings import get_settings
from jobs.vault_key import get_vault_key_file
from trainer_core.data.phi.vault import Keyring, VaultEntry, create_key_file, iter_vault_entries, load_keyring
from trainer_core.errors import ConfigurationError

vault = typer.Typer(no_args_is_help=True, help="Look up what placeholders stand for.")


def add_commands(app: typer.Typer) -> None:
    app.add_typer(vault, name="vault")


@vault.command()
def key(file: Annotated[Path, typer.Argument(help="A new file that only you may read.")]) -> None:
    """Make a key. Without it no vault can be read; keep it apart from the vault."""
    with clear_errors(OSError):
        create_key_file(file)


@vault.command()
def show(
    file: Annotated[Path | None, typer.Argument(help="The vault, a file of `medtune replace`.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Id of a dataset: its vault in the database.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="The key file that it was written with; for a dataset, the service's.")
    ] = None,
    token: Annotated[str | None, typer.Option(help="Such as [PATIENT_1]: only its entries.")] = None,
    scope: Annotated[str | None, typer.Option(help="Such as row:17: only its entries.")] = None,
) -> None:
    """Print what placeholders stand for, a JSON object a line: these are identifiers in clear.

    Of a dataset, the audit log records it before anything is shown.
    """
    if (file is None) == (dataset is None):
        fail("name a vault's file, or a dataset with --dataset", exit_code=2)
    if file is not None and key is None:
        fail("name the key file with --key", exit_code=2)
    with clear_errors(OSError, ConfigurationError, NotFound):
        keyring = load_keyring(key or get_vault_key_file(get_settings()))
        if file is not None:
            entries = iter_vault_entries(file)
            _print(keyring, (e for e in entries if token in (None, e.token) and scope in (None, e.scope)))
            return
        assert dataset is not None
        with _reading(dataset, token, scope) as session:
            rows = repository.iter_vault_rows(session, dataset, token=token, scope=scope)
            _print(keyring, (VaultEntry.model_validate(row, from_attributes=True) for row in rows))


@contextmanager
def _reading(dataset_id: str, token: str | None, scope: str | None) -> Iterator[Session]:
    """As the database's owner: whoever may do that may do anything to it. Raises NotFound."""
    engine = build_engine(get_operator_settings(), role=None, pool_size=1)
    try:
        sessions = build_sessions(engine)
        with sessions.begin() as session:
            tenant_id = repository.get_dataset(session, dataset_id).tenant_id
            told = {"token": token, "scope": scope}
            audit_log.record_by_operator(
                session, tenant_id=tenant_id, action="show_vault", object_id=dataset_id, **told
            )
        with sessions() as session:
            yield session
    finally:
        engine.dispose()


def _print(keyring: Keyring, entries: Iterable[VaultEntry]) -> None:
    for entry in entries:
        typer.echo(json.dumps({"scope": entry.scope, "token": entry.token, "value": keyring.decrypt(entry)}))
