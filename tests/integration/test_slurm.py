"""examples/slurm/train.sbatch on a real cluster: it trains, comes back after a signal, and ends with the right code."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.processes import Supervisor
from tests.integration.slurm_cluster import SlurmCluster, start_cluster
from tests.training.conftest import DATA, read_events
from trainer_core.demo_model import build_demo_model
from trainer_core.reporting import ErrorEvent, Event, MetricsEvent, NoticeEvent, PhaseEvent
from trainer_core.run_dir import RunDir

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "train.sbatch"
SMALL = ["--gres=none", "--cpus-per-task=1", "--mem=100M"]
"""What the script asks for, replaced by what this machine has."""
SETTINGS = "learning_rate=0.005 max_seq_len=64 truncation=truncate packing=false global_batch_size=2 precision=fp32"

Submit = Callable[..., str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    home = tmp_path_factory.mktemp("slurm")
    with Supervisor(home / "logs") as supervisor:
        cluster = start_cluster(supervisor, home, num_nodes=2)
        yield cluster
        cluster.empty()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "demo"
    build_demo_model(folder, data=DATA, hidden_size=96)
    return folder


@pytest.fixture
def submit(cluster: SlurmCluster, model: Path, tmp_path: Path) -> Submit:
    """Submit the script with options; keyword arguments are its variables. Its jobs run in `tmp_path`."""

    def submit(*options: str, training: str = "", **variables: str) -> str:
        environment = {"MODEL": str(model), "DATA": str(DATA), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        environment["SAFETY"] = "off"
        environment |= {"TRAINING": f"{SETTINGS} {training}"} | variables
        return cluster.submit(SCRIPT, *SMALL, *options, cwd=tmp_path, environment=environment)

    return submit


def wait_for_event(run_dir: RunDir, is_it: Callable[[Event], bool]) -> None:
    deadline = time.monotonic() + 300
    while not run_dir.events.exists() or not any(is_it(event) for event in read_events(run_dir)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_verifying(event: Event) -> bool:
    return isinstance(event, PhaseEvent) and event.phase == "verifying"


def list_steps(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, MetricsEvent)]


def test_a_job_trains_and_proves_an_adapter(cluster: SlurmCluster, submit: Submit, tmp_path: Path) -> None:
    job = submit(training="max_steps=3")

    found = cluster.wait_for_end(job, seconds=300)

    log = (tmp_path / f"medtune-{job}.log").read_text()
    assert found["JobState"] == "COMPLETED", log
    run_dir = RunDir(tmp_path / "runs" / job)
    assert (run_dir.adapter / "adapter_model.safetensors").is_file()
    assert json.loads(run_dir.verification.read_text())["ok"]
    assert "step 3/3" in log
    assert run_dir.load_spec().training.max_steps == 3


def test_a_job_on_two_nodes_comes_back_after_each_signal_and_goes_on_where_it_was(
    cluster: SlurmCluster, submit: Submit, tmp_path: Path
) -> None:
    num_steps = 80
    job = submit("--nodes=2", training=f"max_steps={num_steps}")
    run_dir = RunDir(tmp_path / "runs" / job)
    wait_for_event(run_dir, lambda event: isinstance(event, MetricsEvent) and event.step >= 3)
    cluster.signal(job, "TERM")
    wait_for_event(run_dir, is_verifying)
    cluster.signal(job, "TERM")

    found = cluster.wait_for_end(job, seconds=300)

    log = (tmp_path / f"medtune-{job}.log").read_text()
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "2"), log
    assert run_dir.load_spec().num_processes == 2
    events = read_events(run_dir)
    [resumed] = [
        number for number, event in enumerate(events) if isinstance(event, NoticeEvent) and event.code == "resumed"
    ]
    before, after = list_steps(events[:resumed]), list_steps(events[resumed:])
    assert 3 <= before[-1] < num_steps
    assert before == list(range(before[-1] + 1))
    assert after == list(range(before[-1] + 1, num_steps + 1))
    assert sum(is_verifying(event) for event in events) == 2
    assert json.loads(run_dir.verification.read_text())["ok"]


def test_a_cancelled_job_does_not_come_back(cluster: SlurmCluster, submit: Submit, tmp_path: Path) -> None:
    job = submit(training="max_steps=100000")
    wait_for_event(RunDir(tmp_path / "runs" / job), lambda _: True)

    cluster.cancel(job)
    found = cluster.wait_for_end(job, seconds=60)

    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0")


def test_a_run_that_fails_ends_the_job_with_its_code(cluster: SlurmCluster, submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "not a known format"}\n')
    job = submit("--gres=gpu:2", DATA="rows.jsonl", VALIDATION="")

    found = cluster.wait_for_end(job, seconds=120)

    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "1:0", "0")
    run_dir = RunDir(tmp_path / "runs" / job)
    assert [event.code for event in read_events(run_dir) if isinstance(event, ErrorEvent)] == ["unknown_format"]
    assert not run_dir.verification.exists()
    spec = run_dir.load_spec()
    assert (spec.num_processes, spec.gpus) == (2, 2)


def test_settings_that_make_no_sense_end_the_job_at_once(cluster: SlurmCluster, submit: Submit, tmp_path: Path) -> None:
    job = submit(training="lora.r=0")

    found = cluster.wait_for_end(job, seconds=60)

    assert (found["JobState"], found["ExitCode"]) == ("FAILED", "2:0")
    assert "lora.r" in (tmp_path / f"medtune-{job}.log").read_text()
