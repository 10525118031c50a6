"""Supervisor: starts processes, each in a session of its own with its own log, and stops them, servers last."""

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from jobs.processes import die_with_parent

POLL_SECONDS = 0.05
MIN_LIFE_SECONDS = 10
MAX_QUICK_ENDS = 3
"""A process that ends sooner, and so more often in a row, is broken: starting it again would not help."""


class StartFailed(Exception):
    """A process ended, or did not get ready in time."""


class Stopped(Exception):
    """SIGINT or SIGTERM came."""


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    stop_signal: signal.Signals
    grace_seconds: float
    is_server: bool
    restart: Callable[[], None] | None
    """Starts it again, if it may end by itself."""
    started_at: float
    num_quick_ends: int = 0
    """How often in a row it ended soon after its start."""


class Supervisor:
    """A context: when it ends, in whatever way, so do its processes.

    SIGINT and SIGTERM raise Stopped inside the block. A SIGKILL of the supervisor reaches the children through the
    kernel (`die_with_parent`).
    """

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._children: list[_Child] = []
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, _raise_stopped)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _tb: TracebackType | None
    ) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # A second Ctrl-C must not leave half of the processes alive.
        self.stop()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def start(  # noqa: PLR0913  by keyword
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_seconds: float = 10,
        is_server: bool = False,
        restarts: bool = False,
    ) -> None:
        """Start a process; `environment` comes on top of this process's own.

        The others need a server to stop well. One that restarts is started again when it ends by itself.
        """
        with self._log_path(name).open("ab") as log:
            process = subprocess.Popen(
                die_with_parent(command),
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        again = functools.partial(
            self.start, name, command, environment=environment, grace_seconds=grace_seconds, restarts=True
        )
        restart = again if restarts else None
        child = _Child(name, process, stop_signal, grace_seconds, is_server, restart, time.monotonic())
        self._children.append(child)
        if stdin is not None:
            assert process.stdin is not None
            process.stdin.write(stdin)
            process.stdin.close()

    def run(self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        """Start a process and wait for its success."""
        self.start(name, command, environment=environment)
        child = self._children[-1]
        if child.process.wait() != 0:
            raise self._failure(child)
        self._children.remove(child)

    def wait_until(self, is_ready: Callable[[], bool], what: str, seconds: float) -> None:
        """Poll until ready. Raises StartFailed when a process ends before, or at the deadline."""
        deadline = time.monotonic() + seconds
        while not is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise StartFailed(f"{what} was not ready within {seconds:.0f} s; see {self._log_dir}")
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Start again what ended and may; raise StartFailed for what may not, or never lives long."""
        for child in list(self._children):
            if child.process.poll() is None:
                continue
            lived = time.monotonic() - child.started_at
            num_quick_ends = child.num_quick_ends + 1 if lived < MIN_LIFE_SECONDS else 0
            if child.restart is None or num_quick_ends > MAX_QUICK_ENDS:
                raise self._failure(child)
            self._children.remove(child)
            child.restart()
            self._children[-1].num_quick_ends = num_quick_ends

    def wait(self) -> None:
        """Until a process ends by itself, which raises StartFailed, or a signal raises Stopped."""
        while True:
            self.check()
            time.sleep(10 * POLL_SECONDS)

    def stop(self) -> None:
        """Stop all processes, servers last; each has its grace before SIGKILL takes its whole session."""
        for is_server in (False, True):
            group = [child for child in self._children if child.is_server == is_server]
            for child in group:
                child.process.send_signal(child.stop_signal)
            for child in group:
                _wait_or_kill(child)
                self._children.remove(child)

    def _log_path(self, name: str) -> Path:
        return self._log_dir / f"{name}.log"

    def _failure(self, child: _Child) -> StartFailed:
        path = self._log_path(child.name)
        tail = "\n".join(path.read_text(errors="replace").splitlines()[-15:])
        return StartFailed(f"{child.name} ended with exit code {child.process.returncode}; {path} ends with:\n{tail}")


def _wait_or_kill(child: _Child) -> None:
    try:
        child.process.wait(child.grace_seconds)
    except subprocess.TimeoutExpired:
        child.process.kill()
        child.process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)  # What it left in its session.


def _raise_stopped(number: int, _frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)
