"""An attempt's run folder: made before its trainer starts, rid of private files after."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from jobs.models import Dataset, Job
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import Store
from trainer_core.config import AcceptedFinding
from trainer_core.run_dir import InitialSource, ModelSource, RunDir, RunSpec, ValidationSource
from trainer_core.safety.guard_config import GuardConfig, parse_guard

OWNER_FILE = "owner"
_SAFETY_PROBES, _SAFETY_RULES = "safety_probes.yaml", "safety_rules.yaml"
_INITIAL = "init"
_GUARD = "safety_guard_"


def get_run_dir(settings: Settings, job: Job) -> RunDir:
    """The folder of this attempt alone; no other attempt ever writes there."""
    return RunDir(settings.runs_dir / job.id / f"attempt-{job.attempt}")


def create_run_dir(
    run_dir: RunDir,
    settings: Settings,
    store: Store,
    job: Job,
    model: ModelSource,
    datasets: Iterable[Dataset],
    accepted: Iterable[tuple[str, str]] = (),
) -> None:
    """A new folder with the attempt's spec and rows. Raises StoreUnavailable.

    `accepted`: probe and check of the safety findings that people accepted.
    """
    spec = JobSpec.model_validate(job.spec)
    shutil.rmtree(run_dir.path, ignore_errors=True)  # Of a database that was restored to a time before this attempt.
    # Relative to the run folder: the plan that one attempt learned holds for the next, wherever that is.
    paths = {dataset.id: Path("data") / dataset.id for dataset in datasets}
    validation = ValidationSource()
    if spec.validation is not None:
        path = str(paths[job.validation_dataset_id]) if job.validation_dataset_id else None
        validation = ValidationSource(path=path, fraction=spec.validation.fraction)
    run_dir.write_spec(
        RunSpec(
            job_id=job.id,
            attempt=job.attempt,
            model=model,
            train_path=str(paths[job.dataset_id]),
            validation=validation,
            training=spec.training,
            init_from=spec.init_from and InitialSource(path=_INITIAL, **spec.init_from.model_dump()),
            safety=spec.safety,
            safety_probes_path=settings.safety_probes_file and _SAFETY_PROBES,
            safety_rules_path=settings.safety_rules_file and _SAFETY_RULES,
            safety_guard=find_guard(settings),
            accepted_findings=tuple(AcceptedFinding(probe_id=probe, check=check) for probe, check in sorted(accepted)),
            num_processes=job.num_gpus or spec.resources.cpus or 1,
            gpus=job.num_gpus,
        )
    )
    # Whose folder it is, for whoever cleans up after a dead owner; so before anything private is in it.
    assert job.lease_owner is not None
    (run_dir.path / OWNER_FILE).write_text(job.lease_owner, encoding="ascii")
    # Copies: what the site changes tomorrow is not what this run was judged by.
    for source, name in ((settings.safety_probes_file, _SAFETY_PROBES), (settings.safety_rules_file, _SAFETY_RULES)):
        if source is not None:
            shutil.copyfile(source, run_dir.path / name)
    (run_dir.path / "data").mkdir(mode=0o700)
    for dataset in datasets:
        store.fetch(dataset.store_key, run_dir.path / paths[dataset.id])


def find_guard(settings: Settings) -> GuardConfig | None:
    """The guard model that the operator named. Raises ConfigurationError with the variable that is wrong."""
    values = {
        name.removeprefix(_GUARD): value for name, value in settings if name.startswith(_GUARD) and value is not None
    }
    if not {"url", "model", "key_file"} & values.keys():
        return None
    return parse_guard(values, prefix=f"MEDTUNE_{_GUARD.upper()}")


def delete_private_files(run_dir: RunDir) -> None:
    """The copies of the rows and of another job's adapter; checkpoints, log and events stay."""
    for path in (run_dir.path / "data", run_dir.path / _INITIAL, run_dir.prepared):
        shutil.rmtree(path, ignore_errors=True)


def read_owner(path: Path) -> str | None:
    """Of an attempt's folder; None: nobody works in it any more."""
    try:
        return (path / OWNER_FILE).read_text(encoding="ascii")
    except FileNotFoundError:
        return None
