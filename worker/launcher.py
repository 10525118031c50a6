"""Starts a trainer command in a process group of its own, and ends everything it started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from jobs.processes import die_with_parent

_PASSED_ON = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CC", "CXX", "CUDA_HOME"}
)
_PASSED_ON_PREFIXES = ("CUDA_", "NCCL_", "HF_", "TORCH", "PYTORCH_", "OMP_", "NVIDIA_", "TRITON_")
_SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
_POLL_SECONDS = 0.05


def start_trainer(command: str, run_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    """`python -m trainer_core COMMAND RUN_DIR`, its output appended to the log.

    Its environment is an allowlist: no database, no broker, no token. A file takes the output and not a pipe, whose
    unread end would block the trainer.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            die_with_parent([sys.executable, "-m", "trainer_core", command, str(run_dir)]),
            cwd=run_dir,
            env=build_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a trainer may know of its surroundings."""
    allowed = {
        name: value
        for name, value in environment.items()
        if (name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES))
        and not any(word in name for word in _SECRET_WORDS)
    }
    return {**allowed, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def stop_tree(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """SIGTERM to everything that the trainer started, after the grace SIGKILL to what is left.

    The family is listed first: ranks that began sessions of their own are in it, but not in the process group.
    """
    family = _list_family(process.pid)
    _signal(family, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and any(_is_alive(member) for member in family):
        process.poll()
        time.sleep(_POLL_SECONDS)
    while alive := [member for member in {*family, *_list_family(process.pid)} if _is_alive(member)]:
        _signal(alive, signal.SIGKILL)
        process.poll()
        time.sleep(_POLL_SECONDS)
    process.wait()


def _list_family(pid: int) -> list[psutil.Process]:
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(family: Iterable[psutil.Process], number: signal.Signals) -> None:
    for member in family:
        try:
            member.send_signal(number)  # psutil compares start times, so a reused pid is not hit.
        except psutil.NoSuchProcess:
            continue


def _is_alive(member: psutil.Process) -> bool:
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
