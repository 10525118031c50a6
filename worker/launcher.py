"""Starts a trainer below a runner that owns all its processes, and sees to it that none of them is left."""

import contextlib
import functools
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

MARKER = "TRAINER_RUN_DIR"
"""In the environment of everything that belongs to an attempt; what somebody killed its runner for is found by it."""
_PASSED_ON = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CC", "CXX", "CUDA_HOME"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR"}
)
_PASSED_ON_PREFIXES = ("CUDA_", "NCCL_", "HF_", "TORCH", "PYTORCH_", "OMP_", "NVIDIA_", "TRITON_")
_SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
_PATIENCE_SECONDS = 30.0
"""What the kernel may need to end what got SIGKILL, freeing GPU memory included; a runner that needs more is stuck."""
_KILL_AGAIN_SECONDS = 0.05


@dataclass(frozen=True)
class Exit:
    """How an attempt's processes ended.

    `exit_code` is the trainer's (-N: signal N), or None when the runner was killed from outside before it could say.
    `oom_kills` is how many processes the kernel killed meanwhile for want of memory, on this machine. `ended_by` is who
    began to end the trainer: an order, a deadline, the loss of the supervisor, or None for itself.
    """

    exit_code: int | None
    oom_kills: int = 0
    ended_by: str | None = None


class Trainer:
    """A running trainer with all that it starts.

    Its runner (`worker.runner`) ends everything when this process dies in whatever way or lets a deadline pass.
    """

    def __init__(
        self,
        command: Sequence[str],
        run_dir: Path,
        log: Path,
        *,
        environment: Mapping[str, str] = {},
        held: Sequence[int] = (),
        namespace: bool | None = None,
    ) -> None:
        """The environment is an allowlist (no database, no broker, no token) with what is given added to it. The output
        goes to a file and not into a pipe, whose unread end would block the trainer.

        The runner keeps the descriptors in `held` open, so that locks on them last as long as it does. `namespace`
        says whether it gets a namespace; None: where the host allows it.
        """
        self._run_dir = run_dir.resolve()
        self._exit_file = self._run_dir / "exit.json"
        self._exit_file.unlink(missing_ok=True)
        self._grace_seconds: float | None = None
        self._first_child: psutil.Process | None = None
        # -P: no file of the run folder may pass for a module. -S: it needs nothing installed, so does not seek it.
        runner = [sys.executable, "-P", "-S", "-m", "worker.runner", str(self._exit_file), "--", *command]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*build_isolation(namespace), *runner],
                cwd=self._run_dir,
                env={**build_environment(os.environ), **environment, MARKER: str(self._run_dir)},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=held,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._orders = self._process.stdin
        self._orders_lock = threading.Lock()
        os.set_blocking(self._orders.fileno(), False)

    @property
    def is_running(self) -> bool:
        """Whether anything of it may still be alive."""
        return self._process.poll() is None

    def wait(self, seconds: float) -> None:
        """Until the trainer and its runner end, or the time is over."""
        self._first_child = self._first_child or self._find_first_child()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def allow_until(self, stop_at: float, kill_at: float) -> None:
        """Unless told otherwise by then, the runner stops everything at `stop_at` and kills it at `kill_at`.

        Both in seconds of CLOCK_BOOTTIME. Any thread may call it, also after the end; it never blocks.
        """
        self._send({"stop_at": stop_at, "kill_at": kill_at})

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM to everything now, SIGKILL after the grace to what is left. Does not wait for that: see `end`."""
        self._send({"grace": grace_seconds})
        self._grace_seconds = grace_seconds

    def end(self) -> Exit:
        """Waits for the end that was asked for, else kills. Returns when nothing of the attempt is alive.

        That takes as long as the kernel takes: what sits in an uninterruptible call cannot be killed.
        """
        if self._grace_seconds is None:
            self._close_orders()  # For the runner that is the loss of its supervisor.
        self.wait((self._grace_seconds or 0) + _PATIENCE_SECONDS)
        if self.is_running:
            logger.error("%s: the runner is stuck and gets killed", self._run_dir)
            self._process.kill()
        self._close_orders()
        known = {self._first_child} if self._first_child else set()
        while not _end(known, self._run_dir, _PATIENCE_SECONDS):
            logger.error("%s: processes survive SIGKILL", self._run_dir)
        self._process.wait()
        return _read_exit(self._exit_file)

    def _send(self, order: Mapping[str, float]) -> None:
        """A line this short goes into the pipe as a whole or, when that is full, not at all."""
        with self._orders_lock:
            if self._orders.closed:
                return
            with contextlib.suppress(BrokenPipeError):
                self._orders.write(json.dumps(order).encode() + b"\n")

    def _close_orders(self) -> None:
        """Not while another thread writes: the number of the descriptor may be somebody else's a moment later."""
        with self._orders_lock:
            self._orders.close()

    def _find_first_child(self) -> psutil.Process | None:
        """Of what was started: the runner below `unshare`, or the trainer below the runner. Somebody may kill the
        parent alone; then it is this one that tells when the end has come."""
        try:
            return next(iter(psutil.Process(self._process.pid).children()), None)
        except psutil.NoSuchProcess:
            return None


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a trainer may know of its surroundings."""
    allowed = {
        name: value
        for name, value in environment.items()
        if (name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES))
        and not any(word in name for word in _SECRET_WORDS)
    }
    return {**allowed, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# --- A namespace of its own ---


def build_isolation(namespace: bool | None = None) -> list[str]:
    """The words before a command that make it PID 1 of a namespace; none where the host denies that.

    A bool decides without asking the host.
    """
    is_wanted = _can_isolate() if namespace is None else namespace
    return _build_unshare() if is_wanted else []


@functools.cache
def _can_isolate() -> bool:
    try:
        probe = subprocess.run([*_build_unshare(), "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("no namespaces for trainers: %s", error)
        return False
    if probe.returncode != 0:
        logger.warning("no namespaces for trainers: %s", probe.stderr.decode(errors="replace").strip())
    return probe.returncode == 0


def _build_unshare() -> list[str]:
    """Others than root may make a namespace only inside one of users, where they stay who they are."""
    users = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
    return [shutil.which("unshare") or "unshare", *users, "--pid", "--fork", "--kill-child", "--mount-proc"]


# --- What was left behind ---


def find_strays(run_dir: Path) -> list[psutil.Process]:
    """What runs on this host with the marker of the run folder, this process excepted."""
    wanted = str(run_dir.resolve())
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and _read_marker(process) == wanted and _is_alive(process)
    ]


def end_strays(run_dir: Path, seconds: float = 30) -> bool:
    """SIGKILL until none is left. False when some survive it for so long, in an uninterruptible call."""
    return _end(set(), run_dir, seconds)


def _end(known: set[psutil.Process], run_dir: Path, seconds: float) -> bool:
    """Whoever was seen once is waited for: a process that ends loses its environment first, its memory after that."""
    deadline = time.monotonic() + seconds
    while living := {process for process in known.union(find_strays(run_dir)) if _is_alive(process)}:
        if time.monotonic() > deadline:
            return False
        _kill(living)
        psutil.wait_procs(living, timeout=_KILL_AGAIN_SECONDS)
        known = living
    return True


def _read_marker(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARKER)
    except (psutil.Error, OSError):
        return None


def _is_alive(process: psutil.Process) -> bool:
    """Whose parent has not looked yet is dead all the same."""
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()  # psutil compares start times, so a reused pid is not hit.
        except psutil.Error:
            continue


def _read_exit(path: Path) -> Exit:
    try:
        return Exit(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return Exit(exit_code=None)
