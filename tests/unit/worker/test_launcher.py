"""Starting and ending a trainer's processes."""

import signal
import sys
from pathlib import Path

import psutil
import pytest

from jobs.processes import die_with_parent
from tests.factories import wait_until
from worker.attempt import describe_failure
from worker.launcher import Trainer, build_environment


def test_a_trainer_is_told_nothing_secret() -> None:
    environment = build_environment(
        {
            "PATH": "/bin",
            "HF_HOME": "/models",
            "CUDA_VISIBLE_DEVICES": "0",
            "HF_TOKEN": "x",
            "MEDTUNE_DATABASE_URL": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "TORCH_API_KEY": "x",
        }
    )

    assert set(environment) == {"PATH", "HF_HOME", "CUDA_VISIBLE_DEVICES", "PYTHONUNBUFFERED", "PYTHONPATH"}


def test_the_exit_code_of_a_stopped_trainer_is_the_signals(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    trainer = Trainer([sys.executable, "-c", code], tmp_path, tmp_path / "log")
    wait_until(lambda: "up" in (tmp_path / "log").read_text())

    assert trainer.stop(grace_seconds=0.2) == -signal.SIGKILL


def test_a_trainer_that_obeys_is_not_killed(tmp_path: Path) -> None:
    obey = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    code = f"import signal, sys, time; {obey}; print('up', flush=True); time.sleep(60)"
    trainer = Trainer([sys.executable, "-c", code], tmp_path, tmp_path / "log")
    wait_until(lambda: "up" in (tmp_path / "log").read_text())

    assert trainer.stop(grace_seconds=20) == 7


def test_other_children_of_the_worker_are_left_alone(tmp_path: Path) -> None:
    stranger = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    trainer = Trainer([sys.executable, "-c", "pass"], tmp_path, tmp_path / "log")

    assert trainer.stop(grace_seconds=1) in (0, -signal.SIGTERM)
    assert stranger.is_running()
    stranger.kill()
    stranger.wait()


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    child = die_with_parent([sys.executable, "-c", "import time; time.sleep(60)"])
    code = f"import subprocess, time; print(subprocess.Popen({child!r}).pid, flush=True); time.sleep(60)"
    with (tmp_path / "pid").open("wb") as output:
        parent = psutil.Popen([sys.executable, "-c", code], stdout=output)
    orphan = psutil.Process(int(wait_until((tmp_path / "pid").read_text)))

    parent.kill()
    parent.wait()

    wait_until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("exit_code", "code", "word"),
    [
        (1, "trainer_died", "1"),
        (-9, "trainer_killed", "SIGKILL"),
        (137, "trainer_killed", "SIGKILL"),
        (-11, "trainer_killed", "SIGSEGV"),
    ],
)
def test_an_exit_without_a_word_is_explained(exit_code: int, code: str, word: str) -> None:
    reason = describe_failure(exit_code, None, ["last line"])

    assert reason["code"] == code
    assert word in reason["message"]
    assert reason["log_tail"] == "last line"
