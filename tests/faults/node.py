"""Parts of a service that tests start, kill, freeze and start again; and a node, which is a machine's worth of them."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from cli.serve import MEDTUNE
from jobs.processes import die_with_parent
from jobs.task_queue import Queue
from tests.factories import find_trainer, is_alive, wait_until
from tests.faults.network import Link


class Part:
    """A process that starts again on demand and never by itself. Start it from a thread that lives as long."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, stdin: bytes = b""
    ) -> None:
        self.name = name
        self._command = die_with_parent(command)
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("MEDTUNE_")}
        self.environment |= environment
        self._stdin = stdin
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def start(self) -> None:
        """Does nothing when it runs."""
        if self.is_running:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(self._stdin)
        self._process.stdin.close()

    def send(self, number: signal.Signals) -> None:
        if self.is_running:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait(30)

    def stop(self) -> None:
        """SIGTERM; returns at once."""
        self.send(signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        if self._process is not None:
            self._process.wait(seconds)

    def list_tree(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        if not self.is_running:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return []


@dataclass(frozen=True)
class Chain:
    """The processes of one attempt, from the pool's child to the trainer."""

    pool_child: psutil.Process
    outer: psutil.Process
    """What the pool's child started: `unshare`, or the runner itself on a host that denies namespaces."""
    runner: psutil.Process
    trainer: psutil.Process

    def list_alive(self) -> list[psutil.Process]:
        """Of those below the pool's child."""
        return [process for process in (self.outer, self.runner, self.trainer) if is_alive(process)]


class Node:
    """One machine: a home of its own, a worker for each queue, its own ways to Postgres and Redis."""

    def __init__(self, name: str, home: Path, environment: Mapping[str, str], postgres: Link, redis: Link) -> None:
        self.name, self.home = name, home
        self.postgres, self.redis = postgres, redis
        home.mkdir(parents=True, exist_ok=True)
        self.workers = {
            queue: Part(
                f"{name}-{queue}",
                [*MEDTUNE, "worker", "--queue", queue],
                {**environment, "MEDTUNE_HOME": str(home)},
                home.parent / f"{name}-{queue}.log",
            )
            for queue in Queue
        }

    @property
    def main(self) -> Part:
        """The Celery main process that runs jobs."""
        return self.workers[Queue.TRAIN]

    def start(self) -> None:
        for worker in self.workers.values():
            worker.start()

    def stop(self) -> None:
        """SIGTERM, as a process manager does; returns at once."""
        for worker in self.workers.values():
            worker.stop()

    def wait(self, seconds: float) -> None:
        for worker in self.workers.values():
            worker.wait(seconds)

    def freeze(self) -> None:
        """Every process of the node stands still, as on a suspended virtual machine."""
        for process in self._list_processes():
            _signal(process, signal.SIGSTOP)

    def thaw(self) -> None:
        for process in self._list_processes():
            _signal(process, signal.SIGCONT)

    def kill(self) -> None:
        """Everything at once, as when the machine loses its power."""
        self.freeze()  # So that nobody sees another one die.
        processes = self._list_processes()
        for process in processes:
            _signal(process, signal.SIGKILL)
        self.wait(30)
        wait_until(lambda: not any(map(is_alive, processes)))

    def get_run_dir(self, job_id: str, attempt: int = 1) -> Path:
        return self.home / "runs" / job_id / f"attempt-{attempt}"

    def find_chain(self, job_id: str, attempt: int = 1) -> Chain:
        """Waits until the attempt's trainer runs here."""
        run_dir = self.get_run_dir(job_id, attempt)
        trainer = find_trainer(run_dir)
        parents = [process for process in trainer.parents() if str(run_dir) in " ".join(process.cmdline())]
        runner, outer = parents[0], parents[-1]
        pool_child = outer.parent()
        assert pool_child is not None
        return Chain(pool_child, outer, runner, trainer)

    def _list_processes(self) -> list[psutil.Process]:
        return [process for worker in self.workers.values() for process in worker.list_tree()]


def measure(is_done: Callable[[], bool], seconds: float) -> float:
    """How long it took; raises AssertionError when it takes longer than `seconds`."""
    begun = time.monotonic()
    wait_until(is_done, seconds=seconds)
    return time.monotonic() - begun


def measure_death(processes: Iterable[psutil.Process], seconds: float) -> float:
    wanted = list(processes)
    return measure(lambda: not any(map(is_alive, wanted)), seconds)


def wait_for_end(chain: Chain) -> None:
    """Of everything below the pool's child."""
    measure_death(chain.list_alive(), 60)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
