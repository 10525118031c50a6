"""Placeholders in the place of identifiers: a dataset's rows without them, and the vault's rows for the database.

Only here, and where the operator looks something up, the vault's key is in memory: no trainer is near.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from jobs import repository
from jobs.database import Sessions
from jobs.models import Dataset, Json
from jobs.settings import Settings
from jobs.vault_key import get_vault_key_file, load_vault_keyring
from trainer_core.data.phi.ner import NerModel
from trainer_core.data.phi.pairs import check_pair_files
from trainer_core.data.phi.replacement import ReplacementReport, Replacer
from trainer_core.data.phi.report import PhiReport
from trainer_core.data.phi.site_patterns import SitePattern
from trainer_core.data.phi.vault import Keyring, VaultEntry, iter_vault_entries
from trainer_core.errors import ConfigurationError

BATCH_ROWS = 1000
Keep = Callable[[], None]


@dataclass(frozen=True)
class Replaced:
    """A dataset's rows without the identifiers that were found."""

    rows: Path
    vault: Path
    """Its entries, a line each, encrypted."""
    report: ReplacementReport


def load_proven_keyring(settings: Settings, sessions: Sessions) -> Keyring:
    """The key that the database's vault was written with; the first one is made. Raises ConfigurationError, also for
    another one or one that is gone; OSError.
    """
    with sessions() as session:
        versions = repository.list_key_versions_of_rows(session)
        if versions and not get_vault_key_file(settings).exists():
            message = f"{get_vault_key_file(settings)}: the vault's key is gone, and datasets were written with it"
            remedy = "Put it back from a backup, mode 0600; no other key is made in its place."
            raise ConfigurationError("vault_key_missing", message, remedy=remedy)
        keyring = load_vault_keyring(settings)
        keyring.check_versions(versions)
        row = repository.find_vault_row(session, keyring.version)
    if row is not None:
        keyring.decrypt(VaultEntry.model_validate(row, from_attributes=True))
    return keyring


def replace_identifiers(
    dataset: Dataset,
    raw: Path,
    keyring: Keyring,
    site_patterns: Sequence[SitePattern],
    keep: Keep,
    ner: NerModel | None = None,
) -> Replaced:
    """Files beside `raw`. `keep` is called for every row. Raises DataError for rows that cannot be read; OSError."""
    assert dataset.phi_strategy is not None
    replacer = Replacer(
        dataset.phi_strategy, site_patterns=site_patterns, patient_key=dataset.patient_key, keyring=keyring, ner=ner
    )
    rows, vault = raw.with_name("clean"), raw.with_name("vault")
    return Replaced(rows, vault, replacer.replace_file(raw, rows, vault=vault, on_row=keep))


def add_pair_findings(
    report: PhiReport,
    dataset: Dataset,
    raw: Path,
    replaced: Replaced,
    site_patterns: Sequence[SitePattern],
    keep: Keep,
    ner: NerModel | None = None,
) -> None:
    """What holding the rows against those that were uploaded shows, such as an identifier that is still there."""
    pairs = check_pair_files(raw, replaced.rows, dataset.patient_key, site_patterns, ner=ner, on_row=keep)
    for finding in pairs:
        report.add(finding)


def describe_replacement(dataset: Dataset, replaced: Replaced) -> Json:
    """For the dataset's report: counts, never a value."""
    uploaded = {"sha256": dataset.sha256, "bytes": dataset.num_bytes}
    return {**replaced.report.model_dump(mode="json"), "patient_key": dataset.patient_key, "uploaded": uploaded}


def iter_vault_rows(dataset: Dataset, vault: Path, keep: Keep) -> Iterator[list[Json]]:
    """Batches of the columns of VaultRow."""
    ids = {"tenant_id": dataset.tenant_id, "dataset_id": dataset.id}
    entries = iter_vault_entries(vault)
    while batch := [{**ids, **entry.model_dump()} for entry in islice(entries, BATCH_ROWS)]:
        keep()
        yield batch
