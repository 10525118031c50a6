"""`verify` passes what training made, and nothing that is broken, empty or of another model."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.conftest import DATA, TrainedRun, read_events, run_trainer
from trainer_core.adapters.verify import verify
from trainer_core.demo_model import build_demo_model
from trainer_core.errors import VerificationError
from trainer_core.reporting import PhaseEvent, Reporter
from trainer_core.run_dir import RunDir

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def run_dir(trained_run: TrainedRun, tmp_path: Path) -> RunDir:
    """A copy of a trained run, to be broken."""
    copy = tmp_path / "run"
    shutil.copytree(trained_run(training={"quantization": "none"}).path, copy)
    return RunDir(copy)


def run_verify(run_dir: RunDir) -> dict[str, Any]:
    with contextlib.closing(Reporter(run_dir.events)) as reporter:
        verify(run_dir, reporter)
    return read_report(run_dir)


def read_report(run_dir: RunDir) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(run_dir.verification.read_text())
    return report


def test_what_training_made_is_verified_in_a_fresh_process(run_dir: RunDir) -> None:
    result = run_trainer("verify", run_dir)
    assert result.returncode == 0, result.stderr
    report = read_report(run_dir)
    assert report["ok"]
    assert [check["ok"] for check in report["checks"]] == [True] * 4
    assert report["checks"][-1]["max_abs_difference"] > 0.1
    last = read_events(run_dir)[-1]
    assert isinstance(last, PhaseEvent)
    assert last.phase == "finished"


def test_the_held_out_loss_is_below_the_bases_beyond_chance(run_dir: RunDir) -> None:
    heldout = run_verify(run_dir)["heldout"]
    assert heldout["rows"] == 10
    assert heldout["adapter_loss"] < heldout["base_loss"]
    low, high = heldout["ci95"]
    assert low < heldout["mean_row_difference"] < high < 0


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_an_adapter_is_verified_on_the_base_that_it_was_trained_on(
    trained_run: TrainedRun, quantization: str, tmp_path: Path
) -> None:
    shutil.copytree(trained_run(training={"quantization": quantization}).path, tmp_path / "run")
    assert run_verify(RunDir(tmp_path / "run"))["ok"]


def set_one_value_to_nan(tensors: Tensors) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


def set_every_b_to_zero(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            tensor.zero_()


def leave_out_a_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".layers.3." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (set_one_value_to_nan, "finite_and_not_zero"),
        (set_every_b_to_zero, "finite_and_not_zero"),
        (leave_out_a_layer, "loads_on_the_base"),
        (dict.clear, "only_lora_tensors"),
    ],
)
def test_broken_tensors_are_caught(run_dir: RunDir, change: Callable[[Tensors], None], check: str) -> None:
    path = run_dir.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(VerificationError, match=check) as caught:
        run_verify(run_dir)
    assert caught.value.code == "artifact_invalid"
    report = read_report(run_dir)
    assert not report["ok"]
    assert (report["checks"][-1]["name"], report["checks"][-1]["ok"]) == (check, False)


def test_an_adapter_of_another_model_is_caught(run_dir: RunDir, tmp_path: Path) -> None:
    build_demo_model(tmp_path / "other", data=DATA, hidden_size=96)
    spec = run_dir.load_spec()
    spec.model.source = str(tmp_path / "other")
    run_dir.spec.write_text(spec.model_dump_json(), encoding="utf-8")
    with pytest.raises(VerificationError, match="loads_on_the_base"):
        run_verify(run_dir)


def test_an_empty_weights_file_is_caught(run_dir: RunDir) -> None:
    (run_dir.adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(VerificationError, match="only_lora_tensors"):
        run_verify(run_dir)
