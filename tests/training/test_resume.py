"""A run that died goes on from its newest whole checkpoint, and ends as if nothing had happened, to the bit."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import (
    DATA,
    CreateRun,
    TrainedRun,
    copy_run,
    list_notices,
    read_events,
    read_steps,
    run_many,
    run_trainer,
)
from trainer_core.checkpoints import find_best_checkpoint, list_checkpoints
from trainer_core.demo_model import build_demo_model
from trainer_core.reporting import ErrorEvent, PhaseEvent
from trainer_core.run_dir import RunDir

STEPS = 6
LONG = {"max_steps": STEPS, "save_every_steps": 2, "eval_every_steps": 3, "keep_checkpoints": 5}
DROPOUT = {"lora": {"dropout": 0.1}}
"""Random numbers in every step: without the ranks' random states no resumed run is equal."""
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"precision": "fp32"},
    "zero1": {"deepspeed": {"stage": 1}},
    "zero2": {"deepspeed": {"stage": 2}, "lora": {"dropout": 0.1, "plus_ratio": 4}},
    "zero3": {"deepspeed": {"stage": 3}},
    "zero3 4bit": {"deepspeed": {"stage": 3}, "quantization": "4bit"},
}
OFFLOADED = {"deepspeed": {"stage": 3, "offload": "cpu"}}


@pytest.fixture(scope="module")
def whole_run(trained_run: TrainedRun) -> RunDir:
    """Of one process, never interrupted."""
    return trained_run(training={**LONG, **DROPOUT})


@pytest.fixture(scope="module")
def resumed(create_run: CreateRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RunDir, RunDir]]:
    """By engine: a whole run of two ranks, and the same gone on from step 2.

    "elsewhere" went on from ZeRO-3's checkpoint in DDP.
    """
    folder = tmp_path_factory.mktemp("resumed")
    whole = {
        name: create_run(training={**LONG, **DROPOUT, **training}, num_processes=2)
        for name, training in {**ENGINES, "offloaded": OFFLOADED}.items()
    }
    run_many(list(whole.values()), 2)
    whole["elsewhere"] = whole["zero3"]
    again = {name: copy_run(run, folder / name, up_to_step=2) for name, run in whole.items()}
    change_spec(again["elsewhere"], training={"deepspeed": {"stage": "none"}})
    again["elsewhere"].plan.unlink()
    run_many(list(again.values()), 2)
    return {name: (whole[name], again[name]) for name in again}


@pytest.mark.parametrize("engine", ENGINES)
def test_several_ranks_go_on_to_the_bit(resumed: dict[str, tuple[RunDir, RunDir]], engine: str) -> None:
    check_equal(*resumed[engine], first_step=3)


def test_an_offloaded_run_goes_on_to_rounding(resumed: dict[str, tuple[RunDir, RunDir]]) -> None:
    """DeepSpeed's CPUAdam multiplies its bias correction up step by step, and after a pause computes it anew."""
    whole, again = (read_steps(run) for run in resumed["offloaded"])
    assert list(again) == [3, 4, 5, 6]
    assert again[3]["loss"] == whole[3]["loss"]
    for step, metrics in again.items():
        assert metrics == pytest.approx(whole[step], rel=2e-3)


def test_another_engine_goes_on_from_a_checkpoint(resumed: dict[str, tuple[RunDir, RunDir]]) -> None:
    whole, again = (read_steps(run) for run in resumed["elsewhere"])
    assert list(again) == [3, 4, 5, 6]
    assert again[3]["loss"] == pytest.approx(whole[3]["loss"], abs=0.05)  # dropout draws other numbers
    assert again[6]["eval_loss"] == pytest.approx(whole[6]["eval_loss"], abs=0.05)


def test_a_killed_run_goes_on_to_the_bit(create_run: CreateRun, whole_run: RunDir) -> None:
    run_dir = create_run(training={**LONG, **DROPOUT})
    interrupt(run_dir, signal.SIGKILL, after_step=3)
    assert not run_dir.adapter.exists()
    run_dir.events.write_bytes(b"")
    assert run_trainer("train", run_dir).returncode == 0
    check_equal(whole_run, run_dir)


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_bit(create_run: CreateRun, whole_run: RunDir) -> None:
    run_dir = create_run(training={**LONG, **DROPOUT, "save_every_steps": 100})
    assert interrupt(run_dir, signal.SIGTERM, after_step=1) == 75
    last = read_events(run_dir)[-1]
    assert isinstance(last, PhaseEvent)
    assert last.phase == "stopped"
    [checkpoint] = list_checkpoints(run_dir.checkpoints)
    assert checkpoint.step == max(read_steps(run_dir)) < STEPS
    run_dir.events.write_bytes(b"")
    assert run_trainer("train", run_dir).returncode == 0
    check_equal(whole_run, run_dir, first_step=checkpoint.step + 1)


def test_ranks_that_are_asked_to_stop_save_and_leave_nothing_running(create_run: CreateRun) -> None:
    run_dir = create_run(num_processes=2, training={"max_steps": 10_000})
    assert interrupt(run_dir, signal.SIGTERM, after_step=1) == 75
    [checkpoint] = list_checkpoints(run_dir.checkpoints)
    assert checkpoint.step == max(read_steps(run_dir))
    assert not find_processes(run_dir)


def test_a_launcher_that_is_killed_takes_its_ranks_with_it(create_run: CreateRun) -> None:
    run_dir = create_run(num_processes=2, training={"max_steps": 10_000})
    interrupt(run_dir, signal.SIGKILL, after_step=1)  # its output ends when the last of its processes is gone
    assert not find_processes(run_dir)


def test_a_damaged_checkpoint_is_passed_over(whole_run: RunDir, tmp_path: Path) -> None:
    run_dir = copy_run(whole_run, tmp_path / "run", up_to_step=4)
    state = run_dir.checkpoints / "step-4" / "trainer_state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    (run_dir.checkpoints / ".step-6.partial").mkdir()  # as a crash in the middle of saving leaves it
    assert run_trainer("train", run_dir).returncode == 0
    assert list_notices(run_dir)[:2] == ["checkpoint_damaged", "resumed"]
    check_equal(whole_run, run_dir, first_step=4)  # step 3 was the best so far


@pytest.mark.parametrize("change", [{"job_id": "another"}, {"training": {"learning_rate": 0.1}}])
def test_a_checkpoint_of_another_run_is_refused(whole_run: RunDir, tmp_path: Path, change: dict[str, Any]) -> None:
    run_dir = copy_run(whole_run, tmp_path / "run", up_to_step=2)
    change_spec(run_dir, **change)
    assert run_trainer("train", run_dir).returncode == 1
    error = read_events(run_dir)[-1]
    assert isinstance(error, ErrorEvent)
    assert error.code == "checkpoint_of_another_run"
    assert error.remedy


def test_a_checkpoint_that_another_version_wrote_for_what_is_another_run_now_is_passed_over(
    whole_run: RunDir, tmp_path: Path
) -> None:
    """Its settings had other fields: it cannot be told from one of another run, and the job is not to fail."""
    run_dir = copy_run(whole_run, tmp_path / "run", up_to_step=2)
    for manifest in run_dir.checkpoints.glob("*/manifest.json"):
        written = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**written, "version": "0.0.0", "run": "of the version before"}))
    assert run_trainer("train", run_dir).returncode == 0
    notices = list_notices(run_dir)
    assert "checkpoint_of_another_version" in notices
    assert "resumed" not in notices
    assert min(read_steps(run_dir)) == 0  # the evaluation before the first step


def test_another_base_of_the_same_name_is_refused(whole_run: RunDir, demo_model: Path, tmp_path: Path) -> None:
    build_demo_model(tmp_path / "demo", data=DATA, seed=1)
    run_dir = copy_run(whole_run, tmp_path / "run", up_to_step=2)
    change_spec(run_dir, model={"id": "demo", "source": str(tmp_path / "demo")})
    assert run_trainer("train", run_dir).returncode == 1
    error = read_events(run_dir)[-1]
    assert isinstance(error, ErrorEvent)
    assert error.code == "checkpoint_of_another_run"


def test_early_stopping_ends_with_the_best_adapter(trained_run: TrainedRun) -> None:
    diverging = {"learning_rate": 0.2, "warmup_ratio": 0.1, "lr_schedule": "constant", "precision": "fp32"}
    stopping = {"eval_every_steps": 1, "early_stopping": {"patience": 2}, "max_steps": 30}
    run_dir = trained_run(training={**diverging, **stopping})
    best = find_best_checkpoint(run_dir.checkpoints)
    assert best is not None
    assert "stopped_early" in list_notices(run_dir)
    assert max(read_steps(run_dir)) == best.step + 2
    weights = "adapter_model.safetensors"
    assert (run_dir.adapter / weights).read_bytes() == (best.path / weights).read_bytes()
    assert not (run_dir.adapter / "manifest.json").exists()


def interrupt(run_dir: RunDir, number: signal.Signals, *, after_step: int) -> int:
    """Start a run and send it a signal once it has done a step. Its exit code, when all of its processes are gone."""
    command = [sys.executable, "-m", "trainer_core", "train", str(run_dir.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert any(f"step {after_step}/" in line for line in process.stdout)
        process.send_signal(number)
        process.stdout.read()
        return process.wait(timeout=60)


def find_processes(run_dir: RunDir) -> list[str]:
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(run_dir.path) in line]


def change_spec(run_dir: RunDir, *, training: dict[str, Any] | None = None, **changes: Any) -> None:
    spec = json.loads(run_dir.spec.read_text())
    spec["training"] |= training or {}
    run_dir.spec.write_text(json.dumps(spec | changes), encoding="utf-8")


def check_equal(whole: RunDir, again: RunDir, *, first_step: int | None = None) -> None:
    """The same metrics from the first step on, and the same adapter, bit for bit."""
    wanted, found = read_steps(whole), read_steps(again)
    if first_step is not None:
        assert min(found) == first_step
    assert max(found) == max(wanted)
    assert 0 not in found
    assert found == {step: wanted[step] for step in found}
    weights = "adapter_model.safetensors"
    assert (whole.adapter / weights).read_bytes() == (again.adapter / weights).read_bytes()
