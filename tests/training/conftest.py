"""A small real model, and real runs of the trainer's command line, each started once a session."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer_core.demo_model import build_demo_model
from trainer_core.reporting import Event, MetricsEvent, parse_event
from trainer_core.run_dir import RunDir, RunSpec

DATA = Path(__file__).parents[2] / "examples" / "medical_qa.jsonl"
STEPS = 4

CreateRun = Callable[..., RunDir]
TrainedRun = Callable[..., RunDir]


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "demo"
    build_demo_model(folder, data=DATA)
    return folder


@pytest.fixture(scope="session")
def create_run(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> CreateRun:
    """A run folder with a spec; keyword arguments `training` and others change its fields."""

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


def run_trainer(command: str, run_dir: RunDir) -> subprocess.CompletedProcess[str]:
    """The command line as the worker starts it, without network."""
    arguments = [sys.executable, "-m", "trainer_core", command, str(run_dir.path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=400, check=False)


def read_events(run_dir: RunDir) -> list[Event]:
    return [parse_event(line) for line in run_dir.events.read_bytes().splitlines()]


def read_metrics(run_dir: RunDir, name: str) -> list[float]:
    """A metric's values, step by step."""
    steps = (event for event in read_events(run_dir) if isinstance(event, MetricsEvent))
    return [event.values[name] for event in steps if name in event.values]
