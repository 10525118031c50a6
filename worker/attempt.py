"""The steps of one attempt around its trainer: the run folder before, the archive after."""

import gzip
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

from jobs.models import Adapter, Dataset, Job
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import Store
from trainer_core.run_dir import ModelSource, RunDir, RunSpec, ValidationSource

OWNER_FILE = "owner"


def get_run_dir(settings: Settings, job: Job) -> RunDir:
    """The folder of this attempt alone; no other attempt ever writes there."""
    return RunDir(settings.runs_dir / job.id / f"attempt-{job.attempt}")


def create_run_dir(run_dir: RunDir, store: Store, job: Job, model: ModelSource, datasets: Iterable[Dataset]) -> None:
    """A new folder with the attempt's spec and rows. Raises StoreUnavailable."""
    spec = JobSpec.model_validate(job.spec)
    shutil.rmtree(run_dir.path, ignore_errors=True)  # Of a database that was restored to a time before this attempt.
    # Relative to the run folder: the plan that one attempt learned holds for the next, wherever that is.
    paths = {dataset.id: Path("data") / dataset.id for dataset in datasets}
    validation = ValidationSource()
    if spec.validation is not None:
        path = str(paths[spec.validation.id]) if spec.validation.id else None
        validation = ValidationSource(path=path, fraction=spec.validation.fraction)
    run_dir.write_spec(
        RunSpec(
            job_id=job.id,
            attempt=job.attempt,
            model=model,
            train_path=str(paths[spec.dataset.id]),
            validation=validation,
            training=spec.training,
            num_processes=job.num_gpus or spec.resources.cpus or 1,
            gpus=job.num_gpus,
        )
    )
    # Whose folder it is, for whoever cleans up after a dead owner; so before anything private is in it.
    assert job.lease_owner is not None
    (run_dir.path / OWNER_FILE).write_text(job.lease_owner, encoding="ascii")
    (run_dir.path / "data").mkdir(mode=0o700)
    for dataset in datasets:
        store.fetch(dataset.store_key, run_dir.path / paths[dataset.id])


def store_adapter(store: Store, job: Job, run_dir: RunDir) -> Adapter:
    """The adapter with its verification as one archive in the store. Raises StoreUnavailable."""
    archive = run_dir.path / "adapter.tar.gz"
    _write_archive(archive, run_dir.adapter, run_dir.verification)
    store_key = f"adapters/{job.id}/attempt-{job.attempt}.tar.gz"
    written = store.put(archive, store_key)
    archive.unlink()
    return Adapter(
        job_id=job.id,
        tenant_id=job.tenant_id,
        store_key=store_key,
        num_bytes=written.num_bytes,
        sha256=written.sha256,
    )


def delete_private_files(run_dir: RunDir) -> None:
    """The copies of the rows; checkpoints, log and events stay."""
    for path in (run_dir.path / "data", run_dir.prepared):
        shutil.rmtree(path, ignore_errors=True)


def _write_archive(path: Path, adapter: Path, verification: Path) -> None:
    """Sorted and without times or owners: the same files give the same bytes."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in sorted(adapter.iterdir()):
            archive.add(file, f"adapter/{file.name}", filter=_anonymise)
        archive.add(verification, "adapter/verification.json", filter=_anonymise)


def _anonymise(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    member.mode = 0o644
    return member
