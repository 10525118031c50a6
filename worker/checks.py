"""A dataset's check: its rows one by one, then the identifiers in them, which it may replace, under a lease that is
renewed meanwhile.
"""

import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from sqlalchemy.orm import Session

from jobs import lifecycle, repository
from jobs.database import LOST_DATABASE, Sessions
from jobs.errors import LimitReached, NotFound
from jobs.lifecycle import CleanRows, RowHashes
from jobs.models import Dataset, Json, build_store_folder
from jobs.settings import Settings
from jobs.status import DatasetStatus, PhiPolicy
from jobs.store import Store
from trainer_core.data.formats import RowError
from trainer_core.data.phi.ner import NerModel
from trainer_core.data.phi.report import PhiReport, report_file
from trainer_core.data.phi.site_patterns import SitePattern, load_site_patterns
from trainer_core.data.phi.vault import Keyring
from trainer_core.data.row_hashes import HashedRows, iter_row_hashes
from trainer_core.data.validation import Finding, ValidationReport, validate_file
from trainer_core.errors import DataError
from worker.host import WORKSPACE
from worker.overlap import add_overlap
from worker.references import fetch_reference
from worker.replacing import (
    Replaced,
    add_pair_findings,
    describe_replacement,
    iter_vault_rows,
    load_proven_keyring,
    replace_identifiers,
)

logger = logging.getLogger(__name__)

RENEWALS = 4
"""So often in the time of a lease it is renewed."""


class CheckInterrupted(Exception):
    """This worker must stop: another begins anew."""


class CheckLease:
    """Keeps a dataset for this worker while its check goes on; other work extends other rows."""

    def __init__(
        self, sessions: Sessions, subject_id: str, owner: str, seconds: float, is_stopping: Callable[[], bool]
    ) -> None:
        self._sessions, self._subject_id, self._owner, self._seconds = sessions, subject_id, owner, seconds
        self._is_stopping = is_stopping
        self._asked_at = time.monotonic()

    def keep(self) -> None:
        """Called for every row. Raises LeaseLost, CheckInterrupted."""
        if self._is_stopping():
            raise CheckInterrupted(self._subject_id)
        now = time.monotonic()
        if now - self._asked_at < self._seconds / RENEWALS:
            return
        self._asked_at = now
        self._renew(self._seconds)

    def keep_for(self, num_bytes: int) -> None:
        """So many are to be moved at one go. Raises LeaseLost."""
        self._renew(self._seconds + num_bytes / lifecycle.CHECK_BYTES_PER_SECOND)

    def _renew(self, seconds: float) -> None:
        try:
            with self._sessions.begin() as session:
                self._extend(session, seconds)
        except LOST_DATABASE as error:
            logger.warning("%s: its lease is not renewed: %s", self._subject_id, error)

    def _extend(self, session: Session, seconds: float) -> None:
        lifecycle.renew_dataset(session, self._subject_id, self._owner, seconds)


@contextmanager
def open_workspace(settings: Settings, owner: str) -> Iterator[Path]:
    """A folder for rows, which nobody but this owner uses and which does not outlive the check."""
    with tempfile.TemporaryDirectory(prefix=f"{WORKSPACE}{owner}-", dir=settings.home) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Checked:
    """What a check found, for `lifecycle.finish_dataset`."""

    report: Json
    """`ok` says whether the dataset may be used."""
    clean: CleanRows | None = None
    """What takes the place of its rows, if anything."""
    hashes: RowHashes | None = None
    """Of rows that may be used."""


def check_dataset(settings: Settings, sessions: Sessions, dataset: Dataset, lease: CheckLease, folder: Path) -> Checked:
    """Reads the dataset into the folder.

    Raises OSError, StoreUnavailable, ConfigurationError, LeaseLost, CheckInterrupted: none of them is the rows' fault.
    """
    site_patterns = load_site_patterns(settings.phi_patterns_file) if settings.phi_patterns_file else []
    store, raw = Store(settings.store_location), folder / "data"
    try:
        _bring_rows(settings, sessions, store, dataset, lease, raw)
    except DataError as error:
        return Checked(_reject(ValidationReport().model_dump(mode="json"), _describe_error(error)))
    with open_ner_model(settings) as ner:
        if dataset.phi_policy != PhiPolicy.REPLACE:
            report = check_file(raw, dataset.phi_policy, site_patterns, lease.keep, ner)
            add_overlap(report, raw, dataset.overlap_policy, settings, lease.keep)
            if not report["ok"]:
                return Checked(report)
            fetched = _store_rows(store, dataset, lease, raw) if dataset.uri is not None else None
            return Checked(report, fetched, hash_rows(dataset, raw, lease.keep))
        keyring = load_proven_keyring(settings, sessions)
        report, replaced = check_and_replace(dataset, raw, keyring, site_patterns, lease.keep, ner)
    if replaced is not None:
        add_overlap(report, replaced.rows, dataset.overlap_policy, settings, lease.keep)
    if replaced is None or not report["ok"]:
        return Checked(report)
    hashes = hash_rows(dataset, replaced.rows, lease.keep, raw=raw, keyring=keyring)
    vault = partial(iter_vault_rows, dataset, replaced.vault, lease.keep)
    return Checked(report, replace(_store_rows(store, dataset, lease, replaced.rows), iter_vault_rows=vault), hashes)


def _bring_rows(
    settings: Settings, sessions: Sessions, store: Store, dataset: Dataset, lease: CheckLease, path: Path
) -> None:
    if dataset.uri is None:
        store.fetch(dataset.store_key, path)
        return
    fetched = fetch_reference(dataset.uri, path, settings, lease.keep)
    try:
        with sessions.begin() as session:
            lifecycle.size_dataset(session, dataset, settings, fetched.num_bytes)
    except LimitReached as error:
        raise DataError(error.code, error.message, remedy=str(error.details["remedy"])) from error
    dataset.num_bytes, dataset.sha256 = fetched.num_bytes, fetched.sha256
    lease.keep_for(fetched.num_bytes)


def _store_rows(store: Store, dataset: Dataset, lease: CheckLease, rows: Path) -> CleanRows:
    lease.keep_for(rows.stat().st_size)
    store_key = f"{dataset.store_folder}/clean-{secrets.token_hex(8)}"  # Of this check alone: another may overtake it.
    written = store.put(rows, store_key)
    return CleanRows(store_key, written.num_bytes, written.sha256)


@contextmanager
def open_ner_model(settings: Settings) -> Iterator[NerModel | None]:
    """The operator's, if there is one."""
    if settings.phi_ner_model is None:
        yield None
        return
    with NerModel(settings.phi_ner_model) as ner:
        yield ner


def check_file(
    path: Path,
    policy: PhiPolicy,
    site_patterns: Sequence[SitePattern],
    keep: Callable[[], None],
    ner: NerModel | None = None,
) -> Json:
    report = _validate(path)
    keep()
    if not report["ok"] or policy == PhiPolicy.OFF:
        return report
    phi = report_file(path, site_patterns, ner=ner, on_row=keep)
    report["phi"] = phi.model_dump(mode="json")
    if policy == PhiPolicy.REJECT and phi.num_findings:
        return _reject(report, _describe(phi.num_findings))
    if policy == PhiPolicy.REJECT and phi.unreadable_rows:
        return _reject(report, _describe_unread(phi))
    return report


def check_and_replace(
    dataset: Dataset,
    raw: Path,
    keyring: Keyring,
    site_patterns: Sequence[SitePattern],
    keep: Callable[[], None],
    ner: NerModel | None = None,
) -> tuple[Json, Replaced | None]:
    """The report is about the rows without the identifiers that were found, unless there are none such."""
    report = _validate(raw)
    keep()
    if not report["ok"]:
        return report, None
    try:
        replaced = replace_identifiers(dataset, raw, keyring, site_patterns, keep, ner)
    except DataError as error:
        return _reject(report, _describe_error(error)), None
    report = {**_validate(replaced.rows), "replacement": describe_replacement(dataset, replaced)}
    keep()
    if not report["ok"]:
        return report, None
    phi = report_file(replaced.rows, site_patterns, ner=ner, on_row=keep)
    try:
        add_pair_findings(phi, dataset, raw, replaced, site_patterns, keep, ner)
    except RowError as error:  # On a busier machine than a moment ago.
        return _reject(report, Finding(line=0, code=error.code, message=error.message)), None
    return {**report, "phi": phi.model_dump(mode="json")}, replaced


def hash_rows(
    dataset: Dataset,
    path: Path,
    keep: Callable[[], None],
    *,
    raw: Path | None = None,
    keyring: Keyring | None = None,
) -> RowHashes:
    """Of the rows as they are trained on; and, keyed, of those in `raw`."""
    rows = HashedRows(iter_row_hashes(path, keep), path.parent)
    parts = [partial(_iter_shards, dataset, rows, None)]
    if raw is not None and keyring is not None:
        uploaded = HashedRows((keyring.digest_row(row_hash) for row_hash in iter_row_hashes(raw, keep)), path.parent)
        parts.append(partial(_iter_shards, dataset, uploaded, keyring.version))
    return RowHashes(rows.compute_digest(), lambda: chain.from_iterable(part() for part in parts))


def _iter_shards(dataset: Dataset, rows: HashedRows, key_version: int | None) -> Iterator[Json]:
    columns: Json = {"tenant_id": dataset.tenant_id, "dataset_id": dataset.id}
    columns |= {"is_uploaded": key_version is not None, "key_version": key_version}
    return ({**columns, "shard": number, "hashes": hashes} for number, hashes in rows.iter_shards())


def sweep_leftovers(sessions: Sessions, store: Store, dataset_id: str) -> None:
    """Delete what the store has of a dataset beyond its rows, such as those with the identifiers; of one that is gone
    or was rejected, everything. While it is checked nothing: that is for whoever ends the check.

    Raises StoreUnavailable, and a database's errors; then somebody looks again.
    """
    try:
        with sessions() as session:
            dataset = repository.get_dataset(session, dataset_id)
    except NotFound:
        store.sweep(build_store_folder(dataset_id))
        return
    if dataset.status != DatasetStatus.VALIDATING:
        is_of_use = dataset.status == DatasetStatus.READY
        store.sweep(dataset.store_folder, keep=dataset.store_key if is_of_use else None)
        with sessions.begin() as session:
            lifecycle.forget_leftovers(session, dataset_id)


def _validate(path: Path) -> Json:
    validation = validate_file(path)
    return {"ok": validation.ok, **validation.model_dump(mode="json")}


def _reject(report: Json, finding: Finding) -> Json:
    return {**report, "ok": False, "findings": [finding.model_dump(mode="json")], "num_findings": 1}


def _describe_error(error: DataError) -> Finding:
    return Finding(line=error.details.get("row", 0), code=error.code, message=f"{error.message}. {error.remedy}")


def _describe(num_findings: int) -> Finding:
    message = (
        f"{num_findings} identifiers of patients were found, and the dataset's policy is to reject them. "
        "Their places are under `phi`: replace them, and upload the file again."
    )
    return Finding(line=0, code="identifiers_found", message=message)


def _describe_unread(phi: PhiReport) -> Finding:
    message = f"{phi.unreadable_rows} rows could not be searched for identifiers. {phi.first_unreadable}"
    return Finding(line=0, code="rows_not_scanned", message=message)
