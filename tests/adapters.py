"""A whole adapter's folder, as the worker's archive holds it, made from a run of the fake trainer."""

import shutil
from pathlib import Path

from tests.factories import create_model_folder
from tests.fake_trainer import Script, verify, write_adapter
from trainer_core.adapters.facts import DatasetFacts, LossPoint
from trainer_core.adapters.signature import build_public_pem, create_private_key, load_private_key
from trainer_core.reporting import Reporter
from trainer_core.run_dir import ModelSource, RunDir, RunSpec, ValidationSource
from worker.release import complete_adapter

DATASETS = [
    DatasetFacts(id="ds_1", role="training", sha256="1" * 64, rows=207, bytes=50_000),
    DatasetFacts(id="ds_2", role="validation", sha256="2" * 64, rows=20, bytes=5_000),
]
LOSSES = [LossPoint(step=0, eval_loss=9.5), LossPoint(step=1, loss=9.0), LossPoint(step=3, loss=6.5, eval_loss=7.0)]


def create_run(path: Path, *, state: str = "5" * 64) -> RunDir:
    """Trained and verified; the worker's steps are still to come."""
    base = path.parent / "base"
    if not base.exists():
        create_model_folder(base)
    run_dir = RunDir(path)
    model = ModelSource(id="tiny", source=str(base))
    run_dir.write_spec(
        RunSpec(job_id=f"job_{path.name}", model=model, train_path="rows", validation=ValidationSource(path="more"))
    )
    write_adapter(run_dir, state)
    verify(run_dir, Reporter(None), Script())
    return run_dir


def create_keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """A private key's file and its public half's."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.touch(mode=0o600)
    private.write_text(create_private_key())
    public.write_bytes(build_public_pem(load_private_key(private).public_key()))
    return private, public


def create_adapter(path: Path, private_key: Path, *, state: str = "5" * 64) -> Path:
    """A folder with everything in it, signed."""
    run_dir = create_run(path.with_name(f"{path.name}_run"), state=state)
    complete_adapter(run_dir, DATASETS, LOSSES, private_key)
    shutil.copytree(run_dir.adapter, path)
    return path
