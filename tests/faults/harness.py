"""A service of separate processes on one machine that tests break in every way, and the figures that it promises.

The suite runs with clocks about twenty times as fast as the real ones. MEDTUNE_TEST_REAL_CLOCKS=1 runs the same with
the clocks that the service has by default, and holds it to the figures that its documentation promises.
"""

import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import psycopg
import redis
from pydantic import SecretStr
from sqlalchemy import Engine, func, make_url, select

from cli.embedded import as_postgres_user, start_postgres, start_redis
from cli.processes import Supervisor
from cli.serve import MEDTUNE, build_environment, find_free_port
from jobs.database import LOST_DATABASE, Role, Sessions, build_engine, build_sessions
from jobs.models import Attempt, Checkpoint, Event, Worker
from jobs.schema import migrate
from jobs.settings import Settings
from jobs.status import FINAL
from tests.conftest import FAKE_TRAINER
from tests.factories import create_model_folder, wait_until, write_rows
from tests.faults.history import ClientLog, History, check_history, read_history
from tests.faults.network import Network
from tests.faults.node import Node, Part
from tests.plain_client import ApiError, Client

logger = logging.getLogger(__name__)

IS_REAL = bool(os.environ.get("MEDTUNE_TEST_REAL_CLOCKS"))

_STALL_SECONDS = 3.0
SCALED_CLOCKS = {
    "heartbeat_seconds": 0.5,
    "lease_seconds": 8,
    "flush_seconds": 0.1,
    "stop_grace_seconds": 1,
    "save_grace_seconds": 5,
    "backoff_seconds": 0.05,
    "reconcile_seconds": 0.5,
    "deaf_seconds": 15,
    "rest_seconds": 2,
    "stall_seconds": _STALL_SECONDS,
}


@dataclass(frozen=True)
class Figure:
    promised: float
    """With the default clocks, as documented."""
    scaled: float
    """With the clocks of tests; what does not scale is the time that processes need to start on two busy cores."""

    @property
    def value(self) -> float:
        return self.promised if IS_REAL else self.scaled


FIGURES = {
    "a dead process of a living node is noticed": Figure(15, 8),
    "a dead process takes its training with it": Figure(5, 5),
    "a lost node's job starts elsewhere": Figure(230, 30),
    "a lost node's lease is taken": Figure(200, 17),
    "a running job is cancelled": Figure(60, 10),
    "a worker is drained": Figure(150, 25),
    "the backlog starts when the broker is back": Figure(30, 15),
    "a deaf worker hears again or is restarted": Figure(240, 120),
    "a POST while the broker is away": Figure(2, 2),
    "the database may be away": Figure(100, 3),
    "the database is away for too long": Figure(600, 11),
    "a training stops when its worker cannot reach the database": Figure(165, 10),
    "a hang is noticed after the limit": Figure(40, 6),
    "old and new run at once after a frozen machine thaws": Figure(15, 5),
}
"""Seconds."""


def check_figure(name: str, seconds: float) -> None:
    allowed = FIGURES[name].value
    logger.info("figure: %s: %.2f s of %.0f s", name, seconds, allowed)
    assert seconds <= allowed, f"{name}: {seconds:.1f} s, and {allowed} s are promised"


PATIENCE = 400 if IS_REAL else 30
"""Seconds in which a job of a few steps ends, whatever befell it."""


@dataclass
class Cluster:
    """A context: Postgres, Redis, API, reconciler and nodes, all of them processes that it owns."""

    home: Path
    num_nodes: int = 2
    gpus_per_node: int = 2
    """As many jobs run on a node at once."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings of all parts."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the workers, on top."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- Jobs ---

    def prepare(self, **script: Any) -> str:
        """A dataset that makes the fake trainer follow the script; its id."""
        script = {"journal": str(self.journals), **script}
        key = json.dumps(script, sort_keys=True)
        if key not in self._datasets:
            rows = [{"instruction": json.dumps(script), "response": "yes"}]
            dataset = self.client.upload(write_rows(self.home / "script.jsonl", rows))
            self._datasets[key] = self._wait_for_dataset(dataset["id"])
            self._steps[self._datasets[key]] = int(script.get("steps", 3))
        return self._datasets[key]

    def _wait_for_dataset(self, dataset_id: str) -> str:
        """Its check needs a worker: one that ended itself after the fault before is started again."""

        def look() -> str:
            self.start_stateless_parts()
            return str(self.client.get(f"/datasets/{dataset_id}")["status"])

        assert wait_until(look, lambda status: status != "validating", seconds=60, every=0.1) == "ready"
        return dataset_id

    def build_request(self, dataset_id: str, **fields: Any) -> dict[str, Any]:
        return {"model": "tiny", "dataset": {"id": dataset_id}, "resources": {"gpus": 1}, **fields}

    def submit(self, dataset_id: str = "", **script: Any) -> str:
        """A job of a prepared dataset, or of a script; its id. What the API answers is noted."""
        dataset_id = dataset_id or self.prepare(**script)
        job_id = str(self.client.post("/jobs", self.build_request(dataset_id))["id"])
        self.note_accepted(job_id, dataset_id)
        return job_id

    def note_accepted(self, job_id: str, dataset_id: str) -> None:
        self.log.note_accepted(job_id, num_steps=self._steps[dataset_id])

    def cancel(self, job_id: str) -> dict[str, Any]:
        answer = self.client.post(f"/jobs/{job_id}/cancel")
        self.log.note_cancel(job_id, is_final=answer["status"] in FINAL)
        return answer

    def wait(self, job_id: str, *statuses: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """For one of the statuses, by default a final one; survives an API that is away."""
        wanted = statuses or tuple(FINAL)

        def read() -> dict[str, Any]:
            try:
                return self.client.get(f"/jobs/{job_id}")
            except (httpx.TransportError, ApiError) as error:
                return {"status": f"not known: {error}"}

        return wait_until(read, lambda job: job["status"] in wanted, seconds, every=0.05)

    def wait_for_step(self, job_id: str, step: int, attempt: int = 1) -> Node:
        """Until the trainer itself has made the step; the node that it runs on."""

        def look() -> Node | None:
            journal = self.read_journal(job_id)
            is_there = any(row["attempt"] == attempt and row.get("step", 0) >= step for row in journal)
            return next((node for node in self.nodes if node.get_run_dir(job_id, attempt).exists() and is_there), None)

        node = wait_until(look, seconds=PATIENCE)
        assert node is not None
        return node

    def wait_for_checkpoint(self, job_id: str, step: int) -> None:
        """Until another node could go on from it. With scaled clocks a step is shorter than storing one takes."""

        def look() -> int:
            with self.sessions() as session:
                return session.scalar(select(func.max(Checkpoint.step)).where(Checkpoint.job_id == job_id)) or 0

        wait_until(look, lambda stored: stored >= step, seconds=PATIENCE)

    def wait_for_attempt(self, job_id: str, attempt: int) -> float:
        """Until a process of the attempt runs; when it began."""

        def look() -> float:
            rows = [row for row in self.read_journal(job_id) if row["attempt"] == attempt]
            return float(rows[0]["time"]) if rows else 0.0

        return wait_until(look, seconds=FIGURES["a lost node's job starts elsewhere"].value + PATIENCE)

    def read_journal(self, job_id: str) -> list[dict[str, Any]]:
        path = self.journals / f"{job_id}.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def find_change(self, job_id: str, to: str, after: float = 0) -> float:
        """Waits for the change of the status; when it was, by the database's clock, which is this machine's."""
        query = select(func.extract("epoch", Event.created_at)).where(
            Event.job_id == job_id, Event.data["to"].astext == to, func.extract("epoch", Event.created_at) > after
        )

        def look() -> float:
            try:
                with self.sessions() as session:
                    return float(session.scalar(query.order_by(Event.seq).limit(1)) or 0)
            except LOST_DATABASE:
                return 0.0

        return wait_until(look, seconds=FIGURES["a lost node's lease is taken"].value + PATIENCE)

    def check_history(self, *, frozen: Collection[str] = ()) -> None:
        """Raises AssertionError with every broken promise, of the jobs since the cluster began, or since `forget`."""
        violations = check_history(self.read_history(), frozen=frozen)
        assert not violations, "\n".join(violations)

    def read_history(self) -> History:
        homes = [node.home for node in self.nodes]
        return read_history(self.sessions, self.log, self.journals, homes, self.home / "store")

    def forget(self) -> None:
        """What was checked already."""
        self.log = ClientLog()

    def check_whole_logs(self) -> None:
        """Also attempts that were taken from their workers have everything stored: their machine lived and told it."""
        for job in self.read_history().jobs:
            for attempt in job.attempts:
                assert attempt.log is not None
                assert attempt.log_offset == len(attempt.log), f"{job.id}: attempt {attempt.number}"

    def get_resumed_step(self, job_id: str, attempt: int) -> int:
        with self.sessions() as session:
            return session.get_one(Attempt, (job_id, attempt)).resumed_from_step or 0

    def read_reasons(self, job_ids: Iterable[str]) -> list[Any]:
        """Why their attempts ended, for a person who looks for a fault."""
        with self.sessions() as session:
            query = select(Attempt.job_id, Attempt.number, Attempt.reason).where(Attempt.job_id.in_(list(job_ids)))
            return [tuple(row) for row in session.execute(query)]

    def end_all_jobs(self) -> None:
        """Cancels what has not ended."""
        for job in self.client.get("/jobs", limit=100)["data"]:
            if job["status"] not in FINAL:
                self.client.post(f"/jobs/{job['id']}/cancel")
                self.wait(job["id"])

    # --- Parts ---

    def heal(self) -> None:
        """Everything runs and every way is open."""
        for link in [link for node in self.nodes for link in (node.postgres, node.redis)]:
            link.restore()
        self.start_servers()
        for node in self.nodes:
            node.thaw()
        self.start_stateless_parts()
        self.wait_until_ready()

    def start_stateless_parts(self) -> None:
        """Those of them that do not run, as a process manager does."""
        for part in (self.api, self.reconciler):
            part.start()
        for node in self.nodes:
            node.start()

    def wait_until_ready(self) -> None:
        """The API answers, and every worker has told the database that it lives; what ends meanwhile starts again."""

        def is_ready() -> bool:
            self.start_stateless_parts()
            pids = {worker.process.pid for node in self.nodes for worker in node.workers.values() if worker.is_running}
            return self._answers() and pids <= self._list_seen_workers()

        wait_until(is_ready, seconds=90, every=0.1)

    def stop_postgres(self) -> None:
        """A fast shutdown: connections are cut, nothing is lost."""
        self.postgres.send(signal.SIGINT)
        self.postgres.wait(30)
        self._engine.dispose()

    def start_servers(self) -> None:
        """Those that do not run; returns when they answer."""
        for part in (self.postgres, self.redis):
            part.start()
        wait_until(self._servers_answer, seconds=60)

    def flush_redis(self) -> None:
        with redis.Redis.from_url(self.redis_url) as connection:
            connection.flushall()

    def build_node(self, name: str, home: Path | None = None, **overrides: Any) -> Node:
        """One more, with settings of its own, that is not started; whoever adds it to `nodes` ends it too."""
        urls = [make_url(_reveal(url)) for url in (self.settings.database_url, self.settings.redis_url)]
        links = [self._network.open_link(url.port or 0) for url in urls]
        names = ("MEDTUNE_DATABASE_URL", "MEDTUNE_REDIS_URL")
        ways = {
            variable: url.set(port=link.port).render_as_string(hide_password=False)
            for variable, url, link in zip(names, urls, links, strict=True)
        }
        environment = {**build_environment(self.settings.model_copy(update=overrides)), **ways, **self.environment}
        return Node(name, home or self.home / "nodes" / name, environment, *links)

    def _start(self, stack: ExitStack) -> None:
        self.log, self._datasets, self._steps = ClientLog(), dict[str, str](), dict[str, int]()
        self.journals = self.home / "journals"
        self.journals.mkdir(parents=True)
        create_model_folder(self.home / "models" / "tiny")
        self._start_servers(stack)
        self.settings = self._build_settings(self.database_url)
        engine = stack.enter_context(_engine(self.settings, None))
        migrate(engine)
        self._engine = stack.enter_context(_engine(self.settings, Role.WORKER))
        self.sessions: Sessions = build_sessions(self._engine)
        self._network = stack.enter_context(Network())
        environment = build_environment(self.settings)
        self.api = Part("api", [*MEDTUNE, "api"], environment, self.home / "api.log")
        self.reconciler = Part("reconciler", [*MEDTUNE, "reconciler"], environment, self.home / "reconciler.log")
        self.nodes = [self.build_node(f"node-{number}") for number in range(self.num_nodes)]
        stack.callback(self._stop)
        self.client = Client(f"http://{self.settings.host}:{self.settings.port}", _reveal(self.settings.bootstrap_key))
        stack.callback(self.client.close)
        self.start_stateless_parts()
        self.wait_until_ready()

    def _start_servers(self, stack: ExitStack) -> None:
        """On ports that stay theirs, so that they can come back."""
        with Supervisor(self.home / "logs") as supervisor:
            self.database_url = start_postgres(supervisor, self.home / "postgres")
            self.redis_url = start_redis(supervisor, self.home / "redis")
            programs = {child.name(): child for child in psutil.Process().children() if _is_below(child, self.home)}
            postgres, redis_server = programs["postgres"].cmdline(), programs["redis-server"].exe()
        password = make_url(self.redis_url).password
        lines = ["bind 127.0.0.1", f"port {make_url(self.redis_url).port}", f"requirepass {password}", 'save ""']
        config = "".join(f"{line}\n" for line in [*lines, f'dir "{self.home / "redis"}"'])
        self.postgres = Part("postgres", as_postgres_user(postgres), {}, self.home / "postgres.log")
        self.redis = Part("redis", [redis_server, "-"], {}, self.home / "redis.log", config.encode())
        stack.callback(self.redis.kill)
        stack.callback(self.postgres.wait, 30)
        stack.callback(self.postgres.send, signal.SIGINT)
        self.start_servers()

    def _build_settings(self, database_url: str) -> Settings:
        return Settings(
            home=self.home / "control",
            port=find_free_port("127.0.0.1"),
            database_url=SecretStr(database_url),
            redis_url=SecretStr(self.redis_url),
            bootstrap_key=SecretStr(f"mt_{secrets.token_urlsafe(32)}"),
            store_url=str(self.home / "store"),
            models_dir=self.home / "models",
            trainer_command=FAKE_TRAINER,
            worker_gpus=self.gpus_per_node,
            max_infra_restarts=30,
            **{**({"stall_seconds": _STALL_SECONDS} if IS_REAL else SCALED_CLOCKS), **self.overrides},
        )

    def _stop(self) -> None:
        for part in (self.api, self.reconciler):
            part.send(signal.SIGTERM)
        for node in self.nodes:
            node.kill()
        for part in (self.api, self.reconciler):
            part.kill()

    def _answers(self) -> bool:
        try:
            return self.client.http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def _servers_answer(self) -> bool:
        try:
            psycopg.connect(self.database_url, connect_timeout=2).close()
            with redis.Redis.from_url(self.redis_url) as connection:
                return bool(connection.ping())
        except (psycopg.OperationalError, redis.RedisError):
            return False

    def _list_seen_workers(self) -> set[int]:
        try:
            with self.sessions() as session:
                return set(session.scalars(select(Worker.pid)))
        except LOST_DATABASE:
            return set()


def pass_time(name: str, *, less: float = 0) -> None:
    """A fault lasts for so long; nothing is waited for."""
    time.sleep(max(FIGURES[name].value - less, 0))


@contextmanager
def _engine(settings: Settings, role: Role | None) -> Iterator[Engine]:
    engine = build_engine(settings, role)
    yield engine
    engine.dispose()


def _reveal(secret: SecretStr | None) -> str:
    assert secret is not None
    return secret.get_secret_value()


def _is_below(process: psutil.Process, home: Path) -> bool:
    return str(home) in process.cwd() or str(home) in " ".join(process.cmdline())
