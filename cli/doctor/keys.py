"""The keys of this home: the one that signs adapters, and the vault's."""

from collections.abc import Iterator, Sequence

from sqlalchemy.orm import Session

from cli.doctor.finding import ERROR, OK, WARNING, Finding
from cli.doctor.sessions import reading
from jobs import repository
from jobs.settings import Settings
from jobs.signing_key import find_signing_key
from jobs.task_queue import Queue
from jobs.vault_key import find_vault_keyring, get_vault_key_file
from trainer_core.data.phi.vault import Keyring, VaultEntry
from trainer_core.errors import ConfigurationError
from worker.machine import HOSTNAME

_READABLE = "see that the service's user can read it"


def check_signing_key(settings: Settings) -> Iterator[Finding]:
    try:
        path = find_signing_key(settings)
    except ConfigurationError as error:
        yield Finding("signing key", ERROR, f"{error.message} Workers take no job until it is mended.", error.remedy)
    except OSError as error:
        yield Finding("signing key", ERROR, f"{error.filename}: {error.strerror}", _READABLE)
    else:
        yield Finding("signing key", OK, f"{path or 'none yet: the first worker that trains makes one'}")


def check_vault_key(settings: Settings) -> Iterator[Finding]:
    path = get_vault_key_file(settings)
    try:
        keyring = find_vault_keyring(settings)
        with reading(settings) as session:
            versions = repository.list_key_versions_of_rows(session) if session else []
            if keyring is None:
                yield _judge_missing(settings, session, versions)
                return
            keyring.check_versions(versions)
            if session is not None:
                _open_one(session, keyring)
    except ConfigurationError as error:
        message = f"{error.message}. Until it is mended no dataset with the policy replace passes its check."
        yield Finding("vault key", ERROR, message, error.remedy)
    except OSError as error:
        yield Finding("vault key", ERROR, f"{error.filename}: {error.strerror}", _READABLE)
    else:
        yield Finding("vault key", OK, str(path))


def _judge_missing(settings: Settings, session: Session | None, versions: Sequence[int]) -> Finding:
    """It may be on another machine, which checks the datasets."""
    if session is None or not versions:
        return Finding("vault key", OK, "none yet: the first check that replaces identifiers makes one")
    living = repository.list_workers(session)
    is_needed = any(worker.queue == Queue.CHECK and worker.hostname == HOSTNAME for worker in living)
    message = f"{get_vault_key_file(settings)}: the vault's key is not here, and datasets were written with it"
    remedy = "where datasets are checked, put it back from a backup, mode 0600; no other key is made in its place"
    return Finding("vault key", ERROR if is_needed else WARNING, message, remedy)


def _open_one(session: Session, keyring: Keyring) -> None:
    row = repository.find_vault_row(session, keyring.version)
    if row is not None:
        keyring.decrypt(VaultEntry.model_validate(row, from_attributes=True))
