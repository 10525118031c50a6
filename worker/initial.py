"""The adapter that a job goes on from, brought into its run folder."""

import hashlib
import tarfile
from pathlib import Path

from jobs.models import Adapter, Checkpoint
from jobs.store import Store
from trainer_core.adapters.gate import check_adapter_folder
from trainer_core.adapters.manifest import BASE_FILE, WEIGHTS_FILE
from trainer_core.errors import VerificationError
from trainer_core.run_dir import RunDir

_FILES = (WEIGHTS_FILE, BASE_FILE, "adapter_config.json")


def fetch_initial(store: Store, row: Adapter | Checkpoint | None, run_dir: RunDir) -> None:
    """The files of `spec.init_from`, out of an archive that is what was stored, through the gate.

    Raises StoreUnavailable; VerificationError for what is gone, changed, or no adapter of the run's base.
    """
    spec = run_dir.load_spec()
    if spec.init_from is None:
        return
    if row is None or not store.exists(row.store_key):
        raise _refuse("init_from_gone", "What init_from names is not in the store any more.")
    archive, folder = run_dir.path / "init.tar", run_dir.path / spec.init_from.path
    try:
        store.fetch(row.store_key, archive)
        with archive.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != row.sha256:
                raise _refuse("init_from_damaged", "What init_from names is not what was put into the store.")
        _unpack(archive, folder)
    finally:
        archive.unlink(missing_ok=True)
    check_adapter_folder(folder, base_model=spec.model.id)


def _unpack(archive: Path, folder: Path) -> None:
    """Nothing else of it: an adapter's folder stands in the archive, a checkpoint's files do at its top."""
    folder.mkdir(mode=0o700)
    with tarfile.open(archive) as files:
        for member in files:
            name = member.name.removeprefix("adapter/")
            if name in _FILES:
                files.extract(member.replace(name=name), folder, filter="data")


def _refuse(code: str, message: str) -> VerificationError:
    return VerificationError(code, message, remedy="Name another adapter, or leave init_from out.")
