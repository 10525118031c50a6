"""`verify` passes what training made, and nothing that is broken, empty or of another model."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters import DATASETS, LOSSES, create_keys
from tests.training.conftest import DATA, TrainedRun, read_events, run_trainer
from trainer_core.adapters.heldout import compute_interval
from trainer_core.adapters.manifest import list_files
from trainer_core.adapters.proof import prove_adapter
from trainer_core.adapters.verify import verify
from trainer_core.demo_model import build_demo_model
from trainer_core.errors import VerificationError
from trainer_core.reporting import PhaseEvent, Reporter
from trainer_core.run_dir import RunDir
from worker.release import complete_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Tensors = dict[str, torch.Tensor]
CHECKS = ["only_lora_tensors", "finite_and_not_zero", "trained_on_this_base", "loads_on_the_base", "changes_the_logits"]


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
    assert [check["name"] for check in report["checks"]] == CHECKS
    assert all(check["ok"] for check in report["checks"])
    assert report["checks"][-1]["max_abs_difference"] > 0.1
    assert report["serving"]["vllm"] == {"loads": True, "flags": ["--enable-lora"], "refused_for": []}
    last = read_events(run_dir)[-1]
    assert isinstance(last, PhaseEvent)
    assert last.phase == "finished"


def test_what_was_verified_is_documented_and_signed_and_proves_itself(
    run_dir: RunDir, demo_model: Path, tmp_path: Path
) -> None:
    private, public = create_keys(tmp_path)
    report = run_verify(run_dir)

    complete_adapter(run_dir, DATASETS[:1], LOSSES, private)

    checks = prove_adapter(run_dir.adapter, public_key=public, base=demo_model)
    assert {check.name: check.result for check in checks if check.result != "passed"} == {}
    card = (run_dir.adapter / "README.md").read_text()
    assert f"| loss with the adapter | {report['heldout']['adapter_loss']:.4f} |" in card
    assert f"| torch | {torch.__version__} |" in card
    for name in list_files(run_dir.adapter):
        content = (run_dir.adapter / name).read_bytes()
        assert not any(str(folder).encode() in content for folder in (demo_model.parent, tmp_path, Path.home())), name


def test_the_held_out_loss_is_below_the_bases_beyond_chance(run_dir: RunDir) -> None:
    heldout = run_verify(run_dir)["heldout"]
    assert heldout["rows"] == 10
    assert heldout["adapter_loss"] < heldout["base_loss"]
    low, high = heldout["ci95"]
    assert low < heldout["mean_row_difference"] < high < 0


@pytest.mark.parametrize(("count", "has_interval"), [(1, False), (4, False), (5, True)])
def test_the_held_out_interval_needs_a_few_rows(run_dir: RunDir, count: int, has_interval: bool) -> None:
    rows = np.load(run_dir.prepared / "validation.npy")
    np.save(run_dir.prepared / "validation.npy", rows[:count])
    heldout = run_verify(run_dir)["heldout"]
    assert heldout["rows"] == count
    assert (heldout["ci95"] is not None) == has_interval


@pytest.mark.parametrize(("count", "quantile"), [(5, 2.776), (10, 2.262), (21, 2.086), (1000, 1.962)])
def test_the_interval_is_students(count: int, quantile: float) -> None:
    sample = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    interval = compute_interval(sample)
    assert interval is not None
    margin = quantile * float(sample.std()) / count**0.5
    assert interval == pytest.approx([float(sample.mean()) - margin, float(sample.mean()) + margin], rel=5e-3)


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_other_kinds_of_lora_are_verified(trained_run: TrainedRun, variant: str, tmp_path: Path) -> None:
    shutil.copytree(trained_run(training={"lora": {"variant": variant, "r": 32}}).path, tmp_path / "run")
    report = run_verify(RunDir(tmp_path / "run"))
    assert report["ok"]
    assert report["serving"]["vllm"] == {
        "loads": variant != "dora",
        "flags": ["--enable-lora", "--max-lora-rank 32"],
        "refused_for": ["DoRA"] if variant == "dora" else [],
    }


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


def set_every_a_to_zero(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            tensor.zero_()


def add_a_rank(tensors: Tensors) -> None:
    """Consistent in itself, and not what the configuration says."""
    for name, tensor in tensors.items():
        dimension = 0 if ".lora_A." in name else 1
        tensors[name] = torch.cat([tensor, tensor.narrow(dimension, 0, 1)], dim=dimension).contiguous()


def leave_out_a_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".layers.3." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (set_one_value_to_nan, "finite_and_not_zero"),
        (set_every_b_to_zero, "finite_and_not_zero"),
        (set_every_a_to_zero, "changes_the_logits"),
        (add_a_rank, "only_lora_tensors"),
        (leave_out_a_layer, "loads_on_the_base"),
        (dict.clear, "only_lora_tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")  # no error to a process of its own
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


@pytest.mark.parametrize("other", [{"seed": 1}, {"hidden_size": 96}], ids=["of the same shape", "of another shape"])
def test_an_adapter_of_another_base_is_caught(run_dir: RunDir, other: dict[str, int], tmp_path: Path) -> None:
    build_demo_model(tmp_path / "other", data=DATA, **other)
    spec = run_dir.load_spec()
    model = spec.model.model_copy(update={"source": str(tmp_path / "other")})
    run_dir.spec.write_text(spec.model_copy(update={"model": model}).model_dump_json(), encoding="utf-8")
    with pytest.raises(VerificationError, match="trained_on_this_base"):
        run_verify(run_dir)


def test_an_adapter_that_does_not_say_what_it_was_trained_on_is_caught(run_dir: RunDir) -> None:
    (run_dir.adapter / "base_model.json").unlink()
    with pytest.raises(VerificationError, match="trained_on_this_base"):
        run_verify(run_dir)


def test_logits_that_are_not_finite_are_caught(run_dir: RunDir) -> None:
    """Every value of the adapter is finite; their products are not."""
    path = run_dir.adapter / "adapter_model.safetensors"
    save_file({name: tensor * 1e30 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(VerificationError, match="changes_the_logits: The logits with the adapter are not finite"):
        run_verify(run_dir)


def test_an_empty_weights_file_is_caught(run_dir: RunDir) -> None:
    (run_dir.adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(VerificationError, match="only_lora_tensors"):
        run_verify(run_dir)
