"""Starts a trainer in a session of its own, and ends everything it started."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from jobs.processes import die_with_parent

_PASSED_ON = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CC", "CXX", "CUDA_HOME"}
)
_PASSED_ON_PREFIXES = ("CUDA_", "NCCL_", "HF_", "TORCH", "PYTORCH_", "OMP_", "NVIDIA_", "TRITON_")
_SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
_KILL_SECONDS = 5
"""The kernel needs a moment to end what got SIGKILL; a process in an uninterruptible call longer."""


class Trainer:
    """A running trainer with all that it starts, ranks in sessions of their own included.

    The process that makes one must adopt orphans (`jobs.processes.adopt_orphans`): only so is what a dead launcher
    leaves behind still to be found.
    """

    def __init__(self, command: Sequence[str], run_dir: Path, log: Path) -> None:
        """The environment is an allowlist: no database, no broker, no token. The output goes to a file and not into
        a pipe, whose unread end would block the trainer."""
        self._strangers = set(psutil.Process().children())
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                die_with_parent(command),
                cwd=run_dir,
                env=build_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """The exit code (-N: signal N), or None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> None:
        """Until the trainer ends, or the time is over."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def stop(self, grace_seconds: float) -> int:
        """SIGTERM to everything, after the grace SIGKILL to what is left; all are gone then. Returns the exit code.

        Of a trainer that ended by itself, what it left behind is ended.
        """
        is_running = self.poll() is None
        family = self._list_family()
        if family and is_running:
            _signal(family, signal.SIGTERM)
            self.wait(grace_seconds)
        while family := self._list_family():
            _signal(family, signal.SIGKILL)
            self.wait(_KILL_SECONDS)  # First and here: whoever else reaps the trainer takes its exit code away.
            psutil.wait_procs([member for member in family if member.pid != self._process.pid], timeout=_KILL_SECONDS)
        return self._process.wait()

    def _list_family(self) -> list[psutil.Process]:
        own = [child for child in psutil.Process().children() if child not in self._strangers]
        return own + [descendant for child in own for descendant in _list_descendants(child)]


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a trainer may know of its surroundings."""
    allowed = {
        name: value
        for name, value in environment.items()
        if (name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES))
        and not any(word in name for word in _SECRET_WORDS)
    }
    return {**allowed, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _list_descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(family: Iterable[psutil.Process], number: signal.Signals) -> None:
    for member in family:
        try:
            member.send_signal(number)  # psutil compares start times, so a reused pid is not hit.
        except psutil.NoSuchProcess:
            continue
