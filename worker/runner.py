"""The first process of an attempt: starts the trainer, obeys its supervisor, and leaves nothing of it alive.

`python -m worker.runner EXIT_FILE -- COMMAND...`, started by `worker.launcher`. As PID 1 of a namespace its own end,
SIGKILL included, makes the kernel kill everything in there. Elsewhere it is a subreaper: whoever loses its parent below
it becomes its child, sessions of their own or not. Either way there is nothing left once it has no child.

It imports nothing of the repo and little else, because every trainer waits for it to start.
"""

import contextlib
import ctypes
import json
import math
import os
import select
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Whoever sends these to the runner means the trainer, and when that ends is the supervisor's decision."""
_TICK_SECONDS = 1.0
"""Longest sleep before a deadline: sleeping stands still while the machine is suspended, CLOCK_BOOTTIME does not."""
_KILL_AGAIN_SECONDS = 0.02
"""What was just being forked may have missed the last SIGKILL."""
_MAX_ORDER_BYTES = 4096
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Runner:
    """One trainer, from its start until nothing of it is left."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.ended_by: str | None = None
        self._is_init = os.getpid() == 1
        self._is_stopping = False
        self._is_killing = False
        self._stop_at = math.inf
        self._kill_at = math.inf
        self._grace_ends_at = math.inf
        self._unread = b""
        self._poller = select.poll()

    def run(self, command: list[str]) -> None:
        """Returns when the trainer and all its descendants are gone."""
        if not self._is_init:
            _set_process_option(_PR_SET_CHILD_SUBREAPER, 1)
        wakeups = self._listen()
        trainer = _start(command, dies_with_runner=not self._is_init)
        while True:
            # Orders come before the clock: who was stopped itself is not to obey a deadline that was put off meanwhile.
            for descriptor, _ in self._poller.poll(self._count_milliseconds()):
                if descriptor == wakeups:
                    os.read(wakeups, 4096)
                else:
                    self._read_orders()
            if not self._reap(trainer):
                return
            self._follow_the_clock()

    def _listen(self) -> int:
        """Makes the end of a child wake the poll; returns the descriptor that does."""
        wakeups, signals = os.pipe()
        os.set_blocking(signals, False)
        signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poller.register(wakeups, select.POLLIN)
        self._poller.register(0, select.POLLIN)
        return wakeups

    def _reap(self, trainer: int) -> bool:
        """Takes in whoever ended. False when there is no child left, and with that no descendant."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == trainer:
                    self.exit_code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            return False

    # --- When to end it ---

    def _follow_the_clock(self) -> None:
        now = _get_time()
        if now >= min(self._stop_at, self._kill_at):
            self._begin_to_end("deadline")
        if self.exit_code is not None or now >= min(self._kill_at, self._grace_ends_at):
            self._is_killing = True
        if self._is_killing:
            self._signal_all(signal.SIGKILL)

    def _begin_to_end(self, by: str) -> None:
        """The first reason stays, and one SIGTERM is enough: many a program takes a second one as impatience."""
        if self._is_stopping or self.exit_code is not None:
            return
        self._is_stopping = True
        self.ended_by = by
        self._signal_all(signal.SIGTERM)

    def _count_milliseconds(self) -> int:
        if self._is_killing:
            return math.ceil(1000 * _KILL_AGAIN_SECONDS)
        next_at = min(self._kill_at, self._grace_ends_at, math.inf if self._is_stopping else self._stop_at)
        return math.ceil(1000 * min(max(next_at - _get_time(), 0), _TICK_SECONDS))

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in [-1] if self._is_init else _list_descendants():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    # --- What the supervisor says ---

    def _read_orders(self) -> None:
        try:
            data = os.read(0, 65536)
        except OSError:
            data = b""
        if not data:
            self._poller.unregister(0)
            self._kill_for_lost_supervisor()
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        self._unread = self._unread[: _MAX_ORDER_BYTES + 1]  # Enough to be refused when its end comes.
        for line in lines:
            self._obey(line)

    def _kill_for_lost_supervisor(self) -> None:
        if not self._is_stopping and self.exit_code is None:
            self._is_stopping = True
            self.ended_by = "supervisor"
        self._is_killing = True

    def _obey(self, line: bytes) -> None:
        order = _parse_order(line)
        match order:
            case {"stop_at": stop_at, "kill_at": kill_at}:
                self._stop_at, self._kill_at = stop_at, kill_at
            case {"grace": grace}:
                self._grace_ends_at = min(self._grace_ends_at, _get_time() + grace)
                self._begin_to_end("order")
            case _:
                _say(f"not an order: {line[:200]!r}")


def _parse_order(line: bytes) -> dict[str, float]:
    """The order, or an empty one for what is none."""
    if len(line) > _MAX_ORDER_BYTES:
        return {}
    try:
        order = {name: float(value) for name, value in json.loads(line).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
    is_known = order.keys() in ({"stop_at", "kill_at"}, {"grace"})
    return order if is_known and all(map(math.isfinite, order.values())) else {}


def _start(command: list[str], *, dies_with_runner: bool) -> int:
    """A signal that comes before the trainer is ready for it waits until it is."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _IGNORED)
    runner = os.getpid()
    trainer = os.fork()
    if trainer == 0:
        _become(command, runner if dies_with_runner else None)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return trainer


def _become(command: list[str], runner: int | None) -> None:
    """In the child, for good. From a session of its own a trainer that signals its group does not hit the runner."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if runner is not None:
            _set_process_option(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != runner:
                os._exit(127)
        for number in (*_IGNORED, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(command[0], command)
    except OSError as error:
        _say(f"cannot start {command[0]}: {error.strerror}")
    finally:
        os._exit(127)


def _list_descendants() -> list[int]:
    """Of this process, by a walk of /proc, parents first."""
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name of the program stands in parentheses and may contain anything; the parent is two words after.
            parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children[parent].append(int(folder.name))
    found = [os.getpid()]
    for pid in found:
        found += children[pid]
    return found[1:]


def _set_process_option(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _get_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # A log that is full or closed must not keep it from its work.
        os.write(2, f"runner: {message}\n".encode())


# --- Kills by the kernel for want of memory ---


def _count_oom_kills() -> tuple[int, int]:
    """Of the whole machine, and of the own cgroup with all below it (version 2)."""
    return _read_count(Path("/proc/vmstat")), _read_count(_get_cgroup() / "memory.events")


def _get_cgroup() -> Path:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return Path("/sys/fs/cgroup", path)


def _read_count(path: Path) -> int:
    try:
        return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError):
        return 0


# --- Its own start and end ---


def _secure_descriptors() -> None:
    """The locks that it was handed stay with it and do not go to the trainer. What was closed is not to be reused."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # The lowest free number: this one.
    for link in Path("/proc/self/fd").iterdir():
        if int(link.name) > 2:
            with contextlib.suppress(OSError):  # One is that which read the folder.
                os.set_inheritable(int(link.name), False)


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def main() -> None:
    """The two words before the trainer's are the exit file and `--`."""
    exit_file, separator, *command = sys.argv[1:]
    assert separator == "--"
    assert command
    _secure_descriptors()
    kills_before = _count_oom_kills()
    runner = Runner()
    runner.run(command)
    oom_kills = max(after - before for after, before in zip(_count_oom_kills(), kills_before, strict=True))
    exit = {"exit_code": runner.exit_code, "oom_kills": max(oom_kills, 0), "ended_by": runner.ended_by}
    try:
        _write_whole(Path(exit_file), json.dumps(exit))
    except OSError as error:
        _say(f"cannot write {exit_file}: {error.strerror}")


if __name__ == "__main__":
    main()
