"""Random faults over many short jobs, again and again: is any lost, doubled, stuck or falsely reported?

Run: python -m bench.chaos [--schedules 200] [--seed N]. Each schedule sends 30 jobs of the fake trainer to a service of
two nodes, cancels and pauses some, and meanwhile kills, freezes, cuts off and restarts parts of it. Then everything is
healed, and the history that clients, tables, events and trainers left behind is checked (tests/faults/history.py).
The clocks are those of the fault suite, about thirty times as fast as the default ones.
"""

import argparse
import contextlib
import heapq
import math
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis

from bench.report import write_result
from jobs.models import Attempt, Job
from jobs.status import FINAL
from tests.faults.harness import SCALED_CLOCKS, Cluster
from tests.faults.history import check_history
from tests.faults.node import Node

NUM_JOBS = 30
NUM_FAULTS = 10
FAULT_SECONDS = 10.0
"""The faults of a schedule begin within so long."""
END_SECONDS = 120.0
"""A job that has not ended so long after everything was healed is stuck."""
PATIENT = {"stall_seconds": 30}
"""Scaled as the other clocks are. No training of these hangs, and on a busy machine a save may take seconds."""
SCRIPTS = (
    {"steps": 12, "step_seconds": 0.05, "save_every": 3},
    {"steps": 30, "step_seconds": 0.05, "save_every": 5},
    {"steps": 12, "step_seconds": 0.1, "save_every": 4, "ignore_term": True, "spawn_setsid": True},
)


@dataclass
class Tally:
    """What all schedules together came to."""

    schedules: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    detect_seconds: list[float] = field(default_factory=list)
    """From the death of a process on a living node to its job waiting again."""
    cancel_seconds: list[float] = field(default_factory=list)
    """From the wish about an owned job to its end."""


KINDS = {"I1": "lost", "I2": "doubled", "I3": "doubled", "I5": "doubled", "I8": "doubled"}
"""Broken promises by how the benchmark counts them; all others are a wrong status."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    tally = run_schedules(arguments.schedules, arguments.seed)
    write_result("chaos", build_figures(tally))
    sys.exit(1 if tally.broken else 0)


def run_schedules(count: int, seed: int) -> Tally:
    """Ctrl-C ends after the schedule that runs: what was seen until then is worth the same."""
    tally = Tally()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        Cluster(Path(folder), gpus_per_node=3, overrides=PATIENT) as cluster,
    ):
        datasets = [cluster.prepare(**script) for script in SCRIPTS]
        stopping = threading.Event()
        signal.signal(signal.SIGINT, lambda *_: stopping.set())
        for number in range(count):
            schedule = Schedule(cluster, datasets, random.Random(seed + number), tally)
            schedule.run()
            tally.schedules += 1
            print(f"{number + 1}/{count}: {', '.join(schedule.told)}", flush=True)
            if stopping.is_set():
                break
    return tally


def build_figures(tally: Tally) -> dict[str, float]:
    return {
        "schedules": tally.schedules,
        **{kind: tally.broken[kind] for kind in ("lost", "doubled", "stuck", "wrong_status")},
        "detect_p50_seconds": statistics.median(tally.detect_seconds or [0.0]),
        "detect_p99_seconds": compute_p99(tally.detect_seconds),
        "cancel_p50_seconds": statistics.median(tally.cancel_seconds or [0.0]),
        "cancel_p99_seconds": compute_p99(tally.cancel_seconds),
        "jobs": tally.schedules * NUM_JOBS,
        "faults": tally.faults.total(),
        "heartbeat_seconds": float(SCALED_CLOCKS["heartbeat_seconds"]),
        "lease_seconds": float(SCALED_CLOCKS["lease_seconds"]),
    }


def compute_p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else 0.0


class Schedule:
    """One round of jobs, wishes and faults on a cluster that was whole before and is after."""

    def __init__(self, cluster: Cluster, datasets: list[str], chance: random.Random, tally: Tally) -> None:
        self._cluster = cluster
        self._datasets = datasets
        self._chance = chance
        self._tally = tally
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._num_planned = 0
        self._cancelled: dict[str, float] = {}
        """When it was answered that the job will be cancelled."""
        self._frozen: set[str] = set()
        self._deaths: list[tuple[str, int, float]] = []
        """Job, attempt, and when a process of it was killed while everything else was well."""
        self._disturbed_until = 0.0
        self.told: list[str] = []

    def run(self) -> None:
        self._cluster.forget()
        for number in range(NUM_JOBS):
            self._plan(self._chance.uniform(0, FAULT_SECONDS / 2), self._submit(number))
        for _ in range(NUM_FAULTS):
            self._plan(self._chance.uniform(1, FAULT_SECONDS), self._break_something)
        while self._agenda:
            when, _, action = heapq.heappop(self._agenda)
            time.sleep(max(0.0, when - time.time()))
            action()
            self._cluster.start_stateless_parts()  # As a process manager does.
        self._cluster.heal()
        self._judge()

    def _plan(self, seconds: float, action: Callable[[], None]) -> None:
        self._num_planned += 1
        heapq.heappush(self._agenda, (time.time() + seconds, self._num_planned, action))

    # --- The client ---

    def _submit(self, number: int) -> Callable[[], None]:
        dataset_id = self._chance.choice(self._datasets)
        headers = {"Idempotency-Key": f"chaos-{self._chance.random()}-{number}"}
        self._cluster.log.unanswered_keys.add(headers["Idempotency-Key"])

        def act() -> None:
            job = self._ask("/jobs", act, json=self._cluster.build_request(dataset_id), headers=headers)
            if job is None:
                return
            self._cluster.note_accepted(job["id"], dataset_id)
            wish = self._chance.random()
            if wish < 0.15:
                self._plan(self._chance.uniform(0, 5), self._cancel(job["id"]))
            elif wish < 0.3:
                self._plan(self._chance.uniform(0, 5), self._pause(job["id"]))

        return act

    def _cancel(self, job_id: str) -> Callable[[], None]:
        def act() -> None:
            job = self._ask(f"/jobs/{job_id}/cancel", act)
            if job is not None:
                self._cluster.log.note_cancel(job_id, is_final=job["status"] in FINAL)
                self._cancelled[job_id] = 0.0 if job["status"] in FINAL else time.time()

        return act

    def _pause(self, job_id: str) -> Callable[[], None]:
        def act() -> None:
            if self._ask(f"/jobs/{job_id}/pause", act) is not None:
                self._plan(self._chance.uniform(0, 3), self._resume(job_id))

        return act

    def _resume(self, job_id: str) -> Callable[[], None]:
        def act() -> None:
            self._ask(f"/jobs/{job_id}/resume", act, again_for="job_is_pausing")

        return act

    def _ask(self, path: str, act: Callable[[], None], again_for: str = "", **request: Any) -> dict[str, Any] | None:
        """The answer; None when it is refused, or when nobody answers: then the same is asked again soon."""
        try:
            answer = self._cluster.client.http.post(path, **request)
        except httpx.TransportError:
            self._plan(0.2, act)
            return None
        if answer.status_code >= 500 or (answer.is_error and answer.json()["error"]["code"] == again_for):
            self._plan(0.2, act)
        return answer.json() if answer.is_success else None

    # --- The faults ---

    def _break_something(self) -> None:
        node = self._chance.choice(self._cluster.nodes)
        faults: list[Callable[[], str]] = [
            *[self._kill_process_of_an_attempt] * 10,
            lambda: self._kill_worker(node),
            lambda: self._kill_node(node),
            lambda: self._freeze(node),
            lambda: self._drain(node),
            lambda: self._cut(node, "postgres"),
            lambda: self._cut(node, "redis"),
            self._restart_postgres,
            self._empty_redis,
            self._restart_redis,
            lambda: self._kill_part("api"),
            lambda: self._kill_part("reconciler"),
        ]
        name = self._chance.choice(faults)()
        self.told.append(name)
        self._tally.faults[name] += 1

    def _kill_process_of_an_attempt(self) -> str:
        found = self._find_attempts()
        if not found:
            return "nothing to kill"
        job_id, attempt, trainer = self._chance.choice(found)
        name, victim = self._chance.choice(list(self._list_chain(trainer).items()))
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            if time.time() > self._disturbed_until:
                self._deaths.append((job_id, attempt, time.time()))
        return f"kill {name}"

    def _find_attempts(self) -> list[tuple[str, int, psutil.Process]]:
        """Job, attempt and trainer of all that train now."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words[-2:-1] != ["train"] or "worker.runner" in words or str(self._cluster.home) not in words[-1]:
                continue
            run_dir = Path(words[-1])
            found.append((run_dir.parent.name, int(run_dir.name.removeprefix("attempt-")), process))
        return found

    @staticmethod
    def _list_chain(trainer: psutil.Process) -> dict[str, psutil.Process]:
        chain = {"trainer": trainer}
        with contextlib.suppress(psutil.NoSuchProcess):
            for parent in trainer.parents():
                words = parent.cmdline()
                if "worker.runner" in words:
                    chain["runner" if "unshare" not in words[0] else "unshare"] = parent
                elif "celery" in words:
                    chain["pool process"] = parent
                    break
        return chain

    def _kill_worker(self, node: Node) -> str:
        node.main.kill()
        return "kill worker"

    def _kill_node(self, node: Node) -> str:
        node.kill()
        return "kill node"

    def _freeze(self, node: Node) -> str:
        seconds = self._chance.uniform(1, 1.5 * float(SCALED_CLOCKS["lease_seconds"]))
        self._frozen |= {job_id for job_id, _, _ in self._find_attempts()}
        node.freeze()
        self._disturb(seconds)
        self._plan(seconds, node.thaw)
        return "freeze node"

    def _drain(self, node: Node) -> str:
        node.stop()
        return "drain node"

    def _cut(self, node: Node, server: str) -> str:
        link = node.postgres if server == "postgres" else node.redis
        kind = self._chance.choice(["cut", "blackhole"])
        seconds = self._chance.uniform(0.5, 8)
        link.cut() if kind == "cut" else link.blackhole()
        self._disturb(seconds)
        self._plan(seconds, link.restore)
        return f"{kind} {server}"

    def _restart_postgres(self) -> str:
        self._cluster.stop_postgres()
        self._cluster.postgres.start()
        self._disturb(2)
        return "restart postgres"

    def _restart_redis(self) -> str:
        self._cluster.redis.kill()
        self._cluster.redis.start()
        return "restart redis"

    def _empty_redis(self) -> str:
        with contextlib.suppress(redis.RedisError):
            self._cluster.flush_redis()
        return "empty redis"

    def _kill_part(self, name: str) -> str:
        part = self._cluster.api if name == "api" else self._cluster.reconciler
        part.kill()
        return f"kill {name}"

    def _disturb(self, seconds: float) -> None:
        """For so long the time until a death is noticed tells nothing."""
        self._disturbed_until = max(self._disturbed_until, time.time() + seconds + 5)

    # --- The verdict ---

    def _judge(self) -> None:
        promises = self._cluster.log.promises
        broken: list[tuple[str, str]] = []
        for job_id in promises:
            job = self._wait_for_end(job_id)
            expected = "cancelled" if job_id in self._cancelled else "succeeded"
            words = f"{job_id} is {job['status']} ({job['reason']}) and should be {expected}"
            if job["status"] != expected:
                broken.append(("wrong_status" if job["status"] in FINAL else "stuck", words))
        history = self._cluster.read_history()
        for violation in check_history(history, frozen=self._frozen):
            kind = KINDS.get(violation.partition(":")[0], "wrong_status")
            if not (kind == "lost" and "has not ended" in violation):  # Counted as stuck.
                broken.append((kind, violation))
        for kind, words in broken:
            print(f"{kind}: {words}", file=sys.stderr, flush=True)
            self._tally.broken[kind] += 1
        self._measure()

    def _wait_for_end(self, job_id: str) -> dict[str, Any]:
        with contextlib.suppress(AssertionError):
            return self._cluster.wait(job_id, seconds=END_SECONDS)
        return self._cluster.client.get(f"/jobs/{job_id}")

    def _measure(self) -> None:
        with self._cluster.sessions() as session:
            for job_id, number, killed_at in self._deaths:
                ended_at = session.get_one(Attempt, (job_id, number)).ended_at
                if ended_at is not None and ended_at.timestamp() > killed_at:
                    self._tally.detect_seconds.append(ended_at.timestamp() - killed_at)
            for job_id, asked_at in self._cancelled.items():
                finished_at = session.get_one(Job, job_id).finished_at
                if asked_at and finished_at is not None:
                    self._tally.cancel_seconds.append(max(0.0, finished_at.timestamp() - asked_at))


if __name__ == "__main__":
    main()
