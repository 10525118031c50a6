"""Exports: an adapter merged into its base, by the trainer's own command, as one archive in the store.

model/              what `python -m trainer_core merge` writes: weights, configuration, tokenizer
  README.md           of what it is made
  adapter_card.md     the adapter's own card
"""

import hashlib
import logging
import re
import secrets
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from sqlalchemy.orm import Session

from jobs import lifecycle, repository
from jobs.database import Sessions
from jobs.errors import InvalidRequest, LeaseLost
from jobs.model_registry import get_model
from jobs.models import Adapter, Export, Job, Json
from jobs.settings import Settings
from jobs.store import Store, StoreWriter
from trainer_core.adapters.manifest import CARD_FILE, VERIFICATION_FILE
from trainer_core.config import TrainingConfig
from trainer_core.run_dir import RunDir, RunSpec
from worker.checks import CheckInterrupted, CheckLease, open_workspace
from worker.launcher import Trainer
from worker.masking import build_masker
from worker.release import anonymise

logger = logging.getLogger(__name__)

MAX_SECONDS = 6 * 3600
"""A merge that takes longer hangs: it reads the base and writes it once."""
_POLL_SECONDS = 0.2
_TAIL_BYTES = 4096
_LAST_WORD = re.compile(r"^(?P<code>[a-z_]+): (?P<message>.+)$", re.MULTILINE)


class _Refused(Exception):
    """The merge cannot be made, however often it is tried."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.reason: Json = {"code": code, "message": message, "remedy": remedy}


class ExportLease(CheckLease):
    """Keeps an export for this worker while it is merged."""

    def _extend(self, session: Session, seconds: float) -> None:
        lifecycle.renew_export(session, self._subject_id, self._owner, seconds)


def export_next(settings: Settings, sessions: Sessions, owner: str, is_stopping: Callable[[], bool]) -> bool:
    """Merge and store the oldest one that waits; False when none does.

    Raises OSError, StoreUnavailable: it is tried again when this lease ends.
    """
    with sessions.begin() as session:
        export = lifecycle.claim_export(session, owner, settings.lease_seconds)
        if export is None:
            return False
        job, adapter = repository.get_job(session, export.job_id), repository.get_adapter(session, export.job_id)
    logger.info("%s: its adapter is merged into its base", job.id)
    lease = ExportLease(sessions, job.id, owner, settings.lease_seconds, is_stopping)
    store, store_key = Store(settings.store_location), f"{_folder(export)}/{secrets.token_hex(8)}.tar"
    try:
        try:
            with open_workspace(settings, owner) as folder:
                written = _export(settings, store, store_key, job, adapter, folder, lease)
            with sessions.begin() as session:
                lifecycle.finish_export(session, job.id, owner, store_key, written)
            store.sweep(_folder(export), keep=store_key)  # What workers left that did not come to their end.
        except _Refused as error:
            logger.warning("%s: %s", job.id, error)
            with sessions.begin() as session:
                lifecycle.fail_export(session, job.id, owner, error.reason)
        except CheckInterrupted:
            logger.info("%s: its merge begins anew elsewhere: this worker must stop", job.id)
            with sessions.begin() as session:
                lifecycle.release_export(session, job.id, owner)
    except LeaseLost:  # Also where the end of it was to be told.
        logger.warning("%s: somebody else merges it now, or it was deleted", job.id)
        store.delete(store_key)
    return True


def _folder(export: Export) -> str:
    return f"exports/{export.job_id}"


def _export(
    settings: Settings, store: Store, store_key: str, job: Job, adapter: Adapter, folder: Path, lease: ExportLease
) -> StoreWriter:
    run_dir = _build_run_dir(settings, store, job, adapter, folder)
    model = folder / "model"
    _merge(settings, run_dir, model, lease)
    shutil.copyfile(run_dir.adapter / CARD_FILE, model / "adapter_card.md")
    (model / CARD_FILE).write_text(_render_readme(job, adapter), encoding="utf-8")
    with (
        store.writing(store_key) as writer,
        tarfile.open(
            fileobj=cast("BinaryIO", _KeptWriter(writer, lease)), mode="w|", format=tarfile.PAX_FORMAT
        ) as archive,
    ):
        for file in sorted(model.iterdir()):  # Not compressed: weights hardly become smaller.
            archive.add(file, f"model/{file.name}", filter=anonymise)
    return writer


def _build_run_dir(settings: Settings, store: Store, job: Job, adapter: Adapter, folder: Path) -> RunDir:
    """As far as the merge needs one: spec, adapter and verification. Raises _Refused, StoreUnavailable, OSError."""
    try:
        model = get_model(settings, job.model)
    except InvalidRequest as error:
        raise _Refused("model_unavailable", error.message, "let the operator register the base again") from error
    run_dir, archive = RunDir(folder / "run"), folder / "adapter.tar.gz"
    training = TrainingConfig.model_validate(job.spec["training"])
    run_dir.write_spec(
        RunSpec(job_id=job.id, attempt=job.attempt, model=model, train_path="none", training=training, safety=None)
    )
    store.fetch(adapter.store_key, archive)
    with archive.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != adapter.sha256:
            raise _Refused("adapter_damaged", "the adapter is not what was put into the store", "train it again")
    with tarfile.open(archive) as files:
        files.extractall(run_dir.path, filter="data")
    archive.unlink()
    shutil.copyfile(run_dir.adapter / VERIFICATION_FILE, run_dir.verification)
    _check_disk(settings, Path(model.source))
    return run_dir


def _check_disk(settings: Settings, base: Path) -> None:
    """The merged weights are as large as the base's in 16 bits. Raises OSError."""
    needed = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    free = shutil.disk_usage(settings.home).free - settings.disk_reserve_bytes
    if free < needed:
        raise OSError(f"{free:,} bytes are free for a merged model of about {needed:,}")


def _merge(settings: Settings, run_dir: RunDir, model: Path, lease: ExportLease) -> None:
    """By a process of its own, which ends with this one. Raises _Refused, OSError, LeaseLost, CheckInterrupted."""
    command = [*settings.trainer_command, "merge", str(run_dir.path), str(model)]
    trainer = Trainer(command, run_dir.path, run_dir.log, environment={"CUDA_VISIBLE_DEVICES": ""})
    deadline = time.monotonic() + MAX_SECONDS
    try:
        while trainer.is_running and time.monotonic() < deadline:
            lease.keep()
            trainer.wait(_POLL_SECONDS)
    finally:
        ending = trainer.end()
    if ending.exit_code == 0:
        return
    tail = build_masker(settings).mask(_read_tail(run_dir.log)).decode(errors="replace")
    word = re.search(_LAST_WORD, tail)
    if ending.exit_code == 1 and word is not None:
        raise _Refused(word["code"], word["message"], "see what the message says, and ask again")
    logger.warning("%s", tail)
    raise OSError(f"the merge ended with {ending}")


def _read_tail(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return file.read()


def _render_readme(job: Job, adapter: Adapter) -> str:
    quantization, note = job.spec["training"]["quantization"], ""
    if quantization != "none":
        note = (
            f"\nThe adapter was trained on the base in {quantization}; on the whole base its answers differ slightly.\n"
        )
    return (
        f"# {job.model} with an adapter merged into it\n\n"
        f"The weights are those of the base model `{job.model}` in bfloat16, with the LoRA adapter of job `{job.id}` "
        f"added (its archive has the SHA-256 `{adapter.sha256}`). The base's licence holds for them.\n{note}\n"
        "What the adapter learned, from which data, and how it was checked: [adapter_card.md](adapter_card.md). The\n"
        "adapter's signature is over the adapter, not over these files.\n"
    )


class _KeptWriter:
    """Writes on while the lease is kept."""

    def __init__(self, writer: StoreWriter, lease: ExportLease) -> None:
        self._writer, self._lease = writer, lease

    def write(self, content: bytes) -> int:
        self._lease.keep()
        self._writer.write(content)
        return len(content)
