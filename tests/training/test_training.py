"""Real runs of `train`: what they write, how they are launched, and how they fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.training.conftest import STEPS, CreateRun, TrainedRun, read_events, read_metrics, run_trainer
from trainer_core.config import TrainingConfig
from trainer_core.launch import find_port
from trainer_core.reporting import CheckpointEvent, ErrorEvent, PhaseEvent
from trainer_core.train import compute_learning_rate

CLASSIC = Path(__file__).parents[2] / "examples" / "jobs" / "classic.json"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@torch.no_grad()
def test_peft_loads_the_adapter_and_the_logits_change(trained_run: TrainedRun, demo_model: Path) -> None:
    run_dir = trained_run()
    base = AutoModelForCausalLM.from_pretrained(demo_model)
    prompt = torch.arange(10)[None]
    before = base(prompt).logits
    adapted = PeftModel.from_pretrained(base, run_dir.adapter)(prompt).logits
    assert (adapted - before).abs().max() > 0.1


def test_the_adapter_names_its_base_by_id_and_no_path_of_this_machine(trained_run: TrainedRun) -> None:
    adapter = trained_run().adapter
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "demo"
    assert {file.name for file in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base_model.json",
        "chat_template.jinja",
        "environment.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for file in adapter.glob("*.json"):
        assert str(Path.home()) not in file.read_text()
        assert "/tmp" not in file.read_text()


def test_a_run_tells_its_phases_and_checkpoints(trained_run: TrainedRun) -> None:
    run_dir = trained_run()
    events = read_events(run_dir)
    phases = [event.phase for event in events if isinstance(event, PhaseEvent)]
    assert phases == ["starting", "preparing", "loading", "training", "evaluating", "evaluating", "saving"]
    [checkpoint] = [event for event in events if isinstance(event, CheckpointEvent)]
    assert (checkpoint.step, checkpoint.path) == (STEPS, f"checkpoints/step-{STEPS}")
    manifest = json.loads((run_dir.path / checkpoint.path / "manifest.json").read_text())
    assert manifest["step"] == STEPS
    assert checkpoint.bytes == sum(entry["bytes"] for entry in manifest["files"].values())


def test_failing_ranks_give_the_run_one_error(create_run: CreateRun) -> None:
    unknown = {"lora": {"target_modules": ["nonesuch"]}}
    run_dir = create_run(num_processes=2, training=unknown)
    result = run_trainer("train", run_dir)
    assert result.returncode == 1
    [error] = [event for event in read_events(run_dir) if isinstance(event, ErrorEvent)]
    assert error.code == "target_modules_match_nothing"
    assert error.remedy
    assert not run_dir.adapter.exists()


def test_one_process_may_keep_its_base_in_the_cpus_memory(create_run: CreateRun, trained_run: TrainedRun) -> None:
    run_dir = create_run(training={"deepspeed": {"stage": 3, "offload": "cpu"}})
    result = run_trainer("train", run_dir)
    assert result.returncode == 0, result.stderr
    assert read_metrics(run_dir, "loss") == pytest.approx(read_metrics(trained_run(), "loss"), abs=3e-2)


def test_two_hosts_train_one_run(create_run: CreateRun, trained_run: TrainedRun) -> None:
    run_dir = create_run(num_processes=2)
    command = [sys.executable, "-m", "trainer_core", "train", str(run_dir.path), "--nodes", "2"]
    command += ["--rendezvous", f"127.0.0.1:{find_port()}", "--node-rank"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    hosts = [subprocess.Popen([*command, rank], env=environment, stdout=subprocess.DEVNULL) for rank in ("0", "1")]
    assert [host.wait(timeout=200) for host in hosts] == [0, 0]
    assert read_metrics(run_dir, "loss") == pytest.approx(read_metrics(trained_run(), "loss"), abs=3e-3)


def test_the_classic_job_trains_once_its_conflicts_are_resolved(create_run: CreateRun) -> None:
    classic = json.loads(CLASSIC.read_text())["training"]
    classic |= {"precision": "bf16", "max_steps": 2}
    del classic["deepspeed"]["config"]["optimizer"]
    run_dir = create_run(training=classic)
    result = run_trainer("train", run_dir)
    assert result.returncode == 0, result.stdout + result.stderr
    plan = run_dir.load_plan()
    assert (plan.stage, plan.offload, plan.micro_batch_size) == (3, "cpu", 1)
    config = json.loads((run_dir.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (32, 128, 0.05)
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_early_stopping_without_validation_rows_is_refused(create_run: CreateRun) -> None:
    run_dir = create_run(validation={}, training={"early_stopping": {}})
    assert run_trainer("train", run_dir).returncode == 1
    error = read_events(run_dir)[-1]
    assert isinstance(error, ErrorEvent)
    assert (error.code, error.details["field"]) == ("early_stopping_needs_validation", "early_stopping")


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
