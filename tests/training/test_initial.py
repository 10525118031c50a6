"""A run that goes on from another's adapter begins where that ended, and refuses one that does not fit."""

import json
import shutil
from pathlib import Path

import pytest

from tests.training.conftest import CreateRun, TrainedRun, read_metrics, read_steps, run_trainer
from trainer_core.reporting import ErrorEvent, parse_event


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_the_first_validation_is_the_last_of_the_ancestor(
    trained_run: TrainedRun, create_run: CreateRun, variant: str
) -> None:
    training = {"lora": {"variant": variant}}
    ancestor = trained_run(training=training)
    run_dir = create_run(
        job_id="job_2", training=training | {"max_steps": 1}, init_from={"path": str(ancestor.adapter)}
    )

    result = run_trainer("train", run_dir)

    assert result.returncode == 0, result.stdout + result.stderr
    assert read_metrics(run_dir, "eval_loss")[0] == read_metrics(ancestor, "eval_loss")[-1]
    assert list(read_steps(run_dir)) == [0, 1]


@pytest.mark.parametrize(
    ("lora", "changed", "code"),
    [
        ({"r": 8}, {}, "init_from_mismatch"),
        ({"target_modules": ["q_proj"]}, {}, "init_from_mismatch"),
        ({}, {"fingerprint": "sha256:" + "0" * 64}, "init_from_other_base"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    trained_run: TrainedRun,
    create_run: CreateRun,
    tmp_path: Path,
    lora: dict[str, object],
    changed: dict[str, str],
    code: str,
) -> None:
    folder = shutil.copytree(trained_run(training={"lora": {"variant": "lora"}}).adapter, tmp_path / "init")
    base = folder / "base_model.json"
    base.write_text(json.dumps(json.loads(base.read_text()) | changed))
    run_dir = create_run(training={"lora": {"variant": "lora"} | lora}, init_from={"path": str(folder)})

    result = run_trainer("train", run_dir)

    assert result.returncode == 1, result.stdout + result.stderr
    (error,) = (e for e in map(parse_event, run_dir.events.read_bytes().splitlines()) if isinstance(e, ErrorEvent))
    assert (error.code, error.details["field"]) == (code, "init_from")
