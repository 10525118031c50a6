"""Real runs of `train`: every engine and quantisation learns, and all engines learn the same."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.training.conftest import STEPS, CreateRun, TrainedRun, read_events, read_metrics, run_trainer
from trainer_core.config import TrainingConfig
from trainer_core.reporting import CheckpointEvent, ErrorEvent, PhaseEvent
from trainer_core.train import compute_learning_rate

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"num_processes": 2},
    "zero2": {"num_processes": 2, "training": {"deepspeed": {"stage": 2}}},
    "zero3": {"num_processes": 2, "training": {"deepspeed": {"stage": 3}, "gradient_checkpointing": True}},
    "zero2 offload": {"num_processes": 2, "training": {"deepspeed": {"stage": 2, "offload": "cpu"}}},
    "zero3 offload": {"num_processes": 2, "training": {"deepspeed": {"stage": 3, "offload": "cpu"}}},
    # 4-bit weights that ZeRO-3 has cut are where evaluation goes wrong most easily.
    "zero3 4bit": {"num_processes": 2, "training": {"deepspeed": {"stage": 3}, "quantization": "4bit"}},
}


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_one_process_learns(trained_run: TrainedRun, quantization: str) -> None:
    run_dir = trained_run(training={"quantization": quantization})
    losses, held_out = read_metrics(run_dir, "loss"), read_metrics(run_dir, "eval_loss")
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    assert held_out[-1] < held_out[0] - 0.3
    assert run_dir.adapter.is_dir()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_learns_as_one_process_does(trained_run: TrainedRun, engine: str) -> None:
    arguments = ENGINES[engine]
    quantization = arguments.get("training", {}).get("quantization", "none")
    alone, run_dir = trained_run(training={"quantization": quantization}), trained_run(**arguments)
    for metric in ("loss", "eval_loss", "grad_norm"):
        expected, found = read_metrics(alone, metric), read_metrics(run_dir, metric)
        assert found[0] == pytest.approx(expected[0], abs=3e-3)  # bfloat16 sums in another order
        assert found[-1] == pytest.approx(expected[-1], abs=3e-2)
    expected_tensors, tensors = (load_file(run.adapter / "adapter_model.safetensors") for run in (alone, run_dir))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in expected_tensors.items()
    }
    assert all(tensor.any() for tensor in tensors.values())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@torch.no_grad()
def test_peft_loads_the_adapter_and_the_logits_change(trained_run: TrainedRun, demo_model: Path) -> None:
    run_dir = trained_run(training={"quantization": "none"})
    base = AutoModelForCausalLM.from_pretrained(demo_model)
    prompt = torch.arange(10)[None]
    before = base(prompt).logits
    adapted = PeftModel.from_pretrained(base, run_dir.adapter)(prompt).logits
    assert (adapted - before).abs().max() > 0.1


def test_the_adapter_names_its_base_by_id_and_no_path_of_this_machine(trained_run: TrainedRun) -> None:
    adapter = trained_run(training={"quantization": "none"}).adapter
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "demo"
    assert {file.name for file in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for file in adapter.glob("*.json"):
        assert str(Path.home()) not in file.read_text()
        assert "/tmp" not in file.read_text()


def test_a_run_tells_its_phases_and_checkpoints(trained_run: TrainedRun) -> None:
    run_dir = trained_run(training={"quantization": "none"})
    events = read_events(run_dir)
    phases = [event.phase for event in events if isinstance(event, PhaseEvent)]
    assert phases[:5] == ["starting", "preparing", "loading", "training", "saving"]
    [checkpoint] = [event for event in events if isinstance(event, CheckpointEvent)]
    assert (checkpoint.step, checkpoint.path) == (STEPS, f"checkpoints/step-{STEPS}")
    manifest = json.loads((run_dir.path / checkpoint.path / "manifest.json").read_text())
    assert manifest["step"] == STEPS
    assert checkpoint.bytes == sum(entry["bytes"] for entry in manifest["files"].values())
    assert "optimizer" in torch.load(run_dir.path / checkpoint.path / "trainer_state.pt", weights_only=True)


def test_failing_ranks_give_the_run_one_error(create_run: CreateRun) -> None:
    diverging = {"learning_rate": 1.0, "max_grad_norm": 1e30, "max_steps": 50, "precision": "fp32"}
    run_dir = create_run(num_processes=2, training=diverging)
    result = run_trainer("train", run_dir)
    assert result.returncode == 1
    [error] = [event for event in read_events(run_dir) if isinstance(event, ErrorEvent)]
    assert error.code == "loss_not_finite"
    assert error.remedy
    assert not run_dir.adapter.exists()


def test_a_termination_signal_ends_the_run_and_its_ranks(create_run: CreateRun) -> None:
    unpacked = {"packing": False, "precision": "fp32", "micro_batch_size": 1, "max_steps": 10_000}
    run_dir = create_run(num_processes=2, training=unpacked)
    command = [sys.executable, "-m", "trainer_core", "train", str(run_dir.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line for line in process.stdout if "step 1/" in line)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()  # ends when the last rank has closed it
        assert process.wait(timeout=10) == 128 + signal.SIGTERM


def test_a_folder_without_a_spec_is_wrong_usage(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "trainer_core", "train", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "spec.json" in result.stderr


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_climbs_to_its_peak_and_follows_the_schedule(schedule: str) -> None:
    config = TrainingConfig.model_validate({"learning_rate": 1.0, "warmup_ratio": 0.1, "lr_schedule": schedule})
    rates = [compute_learning_rate(config, step, 100) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert max(rates) == 1.0
    assert (rates[-1] < 0.02) == (schedule != "constant")
    assert min(rates) > 0
