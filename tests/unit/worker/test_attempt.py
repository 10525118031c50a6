"""An attempt's run folder says how its run is watched, and has copies of the site's own safety files."""

from pathlib import Path
from typing import Any

import pytest

from jobs.models import Dataset, Job
from jobs.settings import Settings
from jobs.store import Store
from trainer_core.config import SafetyConfig
from trainer_core.run_dir import ModelSource, RunDir, RunSpec
from trainer_core.safety.guard_config import GuardConfig
from worker.attempt import create_run_dir

DATASET = "ds_" + "0" * 26


def create(folder: Path, **settings: Any) -> RunDir:
    store, run_dir = Store(str(folder / "store")), RunDir(folder / "runs" / "attempt-1")
    (folder / "store").mkdir()
    (folder / "store" / "rows").write_text("{}\n")
    spec = {"model": "tiny", "dataset": {"id": DATASET}}
    job = Job(id="job", dataset_id=DATASET, attempt=1, spec=spec, num_gpus=0, lease_owner="worker")
    datasets = [Dataset(id=DATASET, store_key="rows")]
    create_run_dir(run_dir, Settings(home=folder, **settings), store, job, ModelSource(id="tiny", source="m"), datasets)
    return run_dir


def test_a_job_that_says_nothing_is_asked_safety_probes(tmp_path: Path) -> None:
    spec = create(tmp_path).load_spec()

    assert spec.safety == SafetyConfig() == RunSpec.model_fields["safety"].default
    assert (spec.safety.every_steps, spec.safety.on_violation) == (100, "record")
    assert spec.safety_probes_path is spec.safety_rules_path is None
    assert spec.safety_guard is None


@pytest.mark.parametrize("kind", ["probes", "rules"])
def test_the_sites_own_files_are_copied_into_the_run(tmp_path: Path, kind: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text('version: "1"\n')

    run_dir = create(tmp_path, **{f"safety_{kind}_file": own})

    path = getattr(run_dir.load_spec(), f"safety_{kind}_path")
    assert (run_dir.path / path).read_text() == own.read_text()


def test_the_operators_guard_is_in_the_spec_and_its_key_is_not(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-sesame")
    guard = {"safety_guard_url": "http://guard:8000/v1", "safety_guard_model": "llama-guard"}

    run_dir = create(tmp_path, **guard, safety_guard_key_file=key_file)

    spec = run_dir.load_spec()
    assert spec.safety_guard == GuardConfig(url="http://guard:8000/v1", model="llama-guard", key_file=key_file)
    assert "sesame" not in run_dir.spec.read_text()
    assert spec.digest_plan() == spec.model_copy(update={"safety_guard": None}).digest_plan()


def test_the_guards_defaults_are_the_same_with_and_without_the_service() -> None:
    for name, field in GuardConfig.model_fields.items():
        default = Settings.model_fields[f"safety_guard_{name}"].default
        assert name in ("url", "model") or (tuple(default) if isinstance(default, list) else default) == field.default
