"""A small real model, and real runs of the trainer's command line, each started once a session."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer_core.checkpoints import list_checkpoints
from trainer_core.demo_model import build_demo_model
from trainer_core.launch import find_port, prepare_and_plan
from trainer_core.reporting import Event, MetricsEvent, NoticeEvent, Reporter, parse_event
from trainer_core.run_dir import RunDir, RunSpec

DATA = Path(__file__).parents[2] / "examples" / "medical_qa.jsonl"
STEPS = 4
_FAULTS = Path(__file__).parent / "faults"

CreateRun = Callable[..., RunDir]
TrainedRun = Callable[..., RunDir]


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "demo"
    build_demo_model(folder, data=DATA)
    return folder


@pytest.fixture(scope="session")
def create_run(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> CreateRun:
    """A run folder with a spec, without safety probes; keyword arguments `training` and others change its fields."""

    def create(*, training: dict[str, Any] | None = None, **changes: Any) -> RunDir:
        defaults: dict[str, Any] = {
            "max_steps": STEPS,
            "learning_rate": 0.005,
            "max_seq_len": 256,
            "global_batch_size": 4,
        }
        fields: dict[str, Any] = {
            "job_id": "job",
            "model": {"id": "demo", "source": str(demo_model)},
            "train_path": str(DATA),
            "validation": {"fraction": 0.05},
            "safety": None,
        }
        run_dir = RunDir(tmp_path_factory.mktemp("runs") / "run")
        run_dir.write_spec(RunSpec.model_validate(fields | changes | {"training": defaults | (training or {})}))
        return run_dir

    return create


@pytest.fixture(scope="session")
def trained_run(create_run: CreateRun) -> TrainedRun:
    """A run that `train` brought to its end; one for each set of arguments."""
    runs: dict[str, RunDir] = {}

    def train(**changes: Any) -> RunDir:
        key = json.dumps(changes, sort_keys=True)
        if key not in runs:
            run_dir = create_run(**changes)
            result = run_trainer("train", run_dir)
            assert result.returncode == 0, result.stdout + result.stderr
            runs[key] = run_dir
        return runs[key]

    return train


def run_trainer(command: str, run_dir: RunDir, **fault: Any) -> subprocess.CompletedProcess[str]:
    """The command line as the worker starts it, without network; with arguments, a fault strikes it."""
    arguments = [sys.executable, "-m", "trainer_core", command, str(run_dir.path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if fault:
        environment |= {"PYTHONPATH": str(_FAULTS), "MEDTUNE_TEST_FAULT": json.dumps(fault)}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=400, check=False)


def run_many(run_dirs: list[RunDir], num_processes: int) -> None:
    """Prepare and train runs, one after another in the same processes; those with DeepSpeed come last."""
    for run_dir in run_dirs:
        with contextlib.closing(Reporter(run_dir.events)) as reporter:
            prepare_and_plan(run_dir, reporter)
    run_dirs = sorted(run_dirs, key=lambda run_dir: run_dir.load_plan().uses_deepspeed)
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes)]
        launcher += ["--master-addr", "127.0.0.1", "--master-port", find_port()]
    command = [*launcher, "-m", "tests.training.many_runs", *(str(run_dir.path) for run_dir in run_dirs)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def copy_run(run_dir: RunDir, target: Path, *, up_to_step: int) -> RunDir:
    """As a run was that died after the checkpoint of a step."""
    copy = RunDir(target)
    shutil.copytree(run_dir.path, target)
    shutil.rmtree(copy.adapter)
    for checkpoint in list_checkpoints(copy.checkpoints):
        if checkpoint.step > up_to_step:
            shutil.rmtree(checkpoint.path)
    copy.events.write_bytes(b"")
    return copy


def read_events(run_dir: RunDir) -> list[Event]:
    return [parse_event(line) for line in run_dir.events.read_bytes().splitlines()]


def list_notices(run_dir: RunDir) -> list[str]:
    return [event.code for event in read_events(run_dir) if isinstance(event, NoticeEvent)]


def read_steps(run_dir: RunDir) -> dict[int, dict[str, float]]:
    """Metrics by step, but for those that tell of time."""
    steps = (event for event in read_events(run_dir) if isinstance(event, MetricsEvent))
    names = ("loss", "grad_norm", "eval_loss")
    return {step.step: {name: step.values[name] for name in names if name in step.values} for step in steps}


def read_metrics(run_dir: RunDir, name: str) -> list[float]:
    """A metric's values, step by step."""
    steps = (event for event in read_events(run_dir) if isinstance(event, MetricsEvent))
    return [event.values[name] for event in steps if name in event.values]
