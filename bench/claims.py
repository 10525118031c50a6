"""Claims of jobs, and what a running job costs, by the size of the tables.

Run: python -m bench.claims. Nothing but an embedded Postgres runs. Jobs, their keys and attempts are made by SQL.
"""

import contextlib
import itertools
import multiprocessing
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psutil
import psycopg
from sqlalchemy import func, make_url, select, text
from sqlalchemy.exc import OperationalError

from bench.report import write_result
from cli.embedded import start_postgres
from cli.processes import Supervisor
from jobs import lifecycle, repository
from jobs.database import Role, Sessions, build_engine, build_sessions, tenant_transaction
from jobs.lifecycle import Claimant, Lease
from jobs.models import Attempt, Job, Json
from jobs.schema import migrate
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import JobStatus
from trainer_core.reporting import MetricsEvent
from trainer_core.run_dir import RunDir
from worker.collector import Collector
from worker.heartbeat import Heartbeat, read_clock
from worker.monitor import POLL_SECONDS

NUM_KEYS = 50
NUM_CLAIMANTS = 40
NUM_CONTENDED = 4000
CLAIMS_OF_EACH = 10
"""400 jobs run at the end: more than 40 hosts of 8 GPUs hold."""
NUM_ROUNDS = 5
NUM_CLAIMS = 500
NUM_POLLS = 5000
NUM_POSITIONS = 5
PATIENCE_SECONDS = 10
"""A poll that takes longer is given up, and counts as so long."""
BEAT_SECONDS = 30
LINES_PER_SECOND = 10
HOSTS = ((0, 0), (1, 1), (8, 8), (8, 2))
"""GPUs of the hosts that ask in turn, and how many are free there."""
DATASET = f"ds_{0:026}"
SPEC = JobSpec.model_validate({"model": "tiny", "dataset": {"id": DATASET}})


@dataclass(frozen=True, eq=False)
class Tables:
    """A database with so many jobs."""

    settings: Settings
    sessions: Sessions
    """As the worker opens them."""
    api: Sessions


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-claims-") as folder:
        home = Path(folder)
        with Supervisor(home / "logs") as supervisor:
            server = start_postgres(supervisor, home / "postgres")
            figures = measure_many_claimants(home, server)
            with (
                open_tables(create_database(home, server, "thousand", num_finished=1000, num_queued=2000)) as thousand,
                open_tables(
                    create_database(home, server, "million", num_finished=1_000_000, num_queued=2000)
                ) as million,
                open_tables(create_database(home, server, "deep", num_finished=0, num_queued=100_000)) as deep,
            ):
                figures |= measure_deep_queue(deep)
                figures |= measure_long_history(thousand, million)
                figures |= measure_running_job(home, thousand)
            write_result("claims", figures)


def measure_many_claimants(home: Path, server: str) -> dict[str, float]:
    """As many processes, as on as many workers, with a queue that stays long; a new database for each round."""
    names = [f"contended_{n}" for n in range(NUM_ROUNDS)]
    databases = [create_database(home, server, name, num_finished=1000, num_queued=NUM_CONTENDED) for name in names]
    return {"claims_per_second": statistics.median(map(count_claims, databases)), "claimants": NUM_CLAIMANTS}


def count_claims(settings: Settings) -> float:
    """A second."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(NUM_CLAIMANTS)
    with fork.Pool(NUM_CLAIMANTS, _enter_claimant, (settings, barrier)) as pool:
        results = pool.map(_claim_some, range(NUM_CLAIMANTS), chunksize=1)
    claimed = [job_id for ids, _, _ in results for job_id in ids]
    assert len(claimed) == len(set(claimed)) == NUM_CLAIMANTS * (CLAIMS_OF_EACH + 1), (len(claimed), len(set(claimed)))
    with open_tables(settings) as tables, tables.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Attempt).where(Attempt.ended_at.is_(None))) == len(
            claimed
        )
        assert session.scalar(select(func.max(Job.attempt)).where(Job.lease_owner.is_not(None))) == 1
    return (
        NUM_CLAIMANTS
        * CLAIMS_OF_EACH
        / (max(ended for _, _, ended in results) - min(started for _, started, _ in results))
    )


_claimant: tuple[Settings, Barrier] | None = None


def _enter_claimant(settings: Settings, barrier: Barrier) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # The supervisor's handler is not theirs.
    global _claimant  # What a pool process gets when it starts.
    _claimant = (settings, barrier)


def _claim_some(number: int) -> tuple[list[str | None], float, float]:
    """The ids of the claimed jobs, when the first was asked for and when the last was there."""
    assert _claimant is not None
    settings, barrier = _claimant
    claimant = Claimant(f"worker-{number}", "host", 3600, host_gpus=8, free_gpus=8)
    with open_tables(settings) as tables:
        first = claim(tables.sessions, claimant)  # Connected, planned, and the ORM is warm.
        barrier.wait()
        started = time.perf_counter()
        ids = [claim(tables.sessions, claimant) for _ in range(CLAIMS_OF_EACH)]
        return [first, *ids], started, time.perf_counter()


def measure_deep_queue(deep: Tables) -> dict[str, float]:
    claim_once(deep, 0)
    claims = [clock(lambda n=n: claim_once(deep, n)) for n in range(NUM_CLAIMS)]  # type: ignore[misc]
    queued = list_jobs(deep, JobStatus.QUEUED, NUM_POSITIONS)
    positions = [clock(lambda job=job: poll_patiently(deep, job)) for job in queued]  # type: ignore[misc]
    return {
        "claim_median_ms_100k": 1e3 * statistics.median(claims),
        "claim_p99_ms_100k": 1e3 * find_p99(claims),
        "position_ms_100k": 1e3 * statistics.median(positions),
    }


def measure_long_history(thousand: Tables, million: Tables) -> dict[str, float]:
    """In turns, so that whatever else the machine does falls on both."""
    claims: dict[Tables, list[float]] = {thousand: [], million: []}
    polls: dict[Tables, list[float]] = {thousand: [], million: []}
    for n in range(NUM_CLAIMS):
        for tables, seconds in claims.items():
            seconds.append(clock(lambda tables=tables, n=n: claim_once(tables, n)))  # type: ignore[misc]
    running = {tables: itertools.cycle(list_jobs(tables, JobStatus.STARTING, 100)) for tables in polls}
    for _ in range(NUM_POLLS):
        for tables, seconds in polls.items():
            job = next(running[tables])
            seconds.append(clock(lambda tables=tables, job=job: poll(tables, job)))  # type: ignore[misc]
    median = statistics.median
    return {
        "claim_median_ms_1m": 1e3 * median(claims[million]),
        "claim_1m_over_1k": median(claims[million]) / median(claims[thousand]),
        "poll_median_ms_1m": 1e3 * median(polls[million]),
        "poll_1m_over_1k": median(polls[million]) / median(polls[thousand]),
        "poll_p99_ms_1m": 1e3 * find_p99(polls[million]),
        "poll_p99_1m_over_1k": find_p99(polls[million]) / find_p99(polls[thousand]),
    }


# --- One running job --------------------------------------------------------------------------------------------


def measure_running_job(home: Path, tables: Tables) -> dict[str, float]:
    """CPU time of the heartbeat, of the reading and storing of a run's news, and of the Postgres that serves them."""
    run_dir = RunDir(home / "run")
    run_dir.path.mkdir()
    claimed_at = read_clock()
    found = lifecycle.claim_job(tables.sessions, Claimant("bench", "host", 180, host_gpus=8, free_gpus=8))
    assert found is not None
    job, lease = found
    with tables.sessions() as session:
        attempt = repository.get_attempt(session, job.id, job.attempt)
    collector = Collector(run_dir, attempt, (0, 0))
    trainer = multiprocessing.get_context("fork").Process(target=_train, args=(run_dir,), daemon=True)
    trainer.start()
    with Heartbeat(tables.settings, lease, claimed_at):
        follow(tables, lease, collector, seconds=3)  # Connections are made and statements prepared.
        client, server = time.process_time(), _read_backends_cpu()
        started = time.perf_counter()
        follow(tables, lease, collector, seconds=BEAT_SECONDS)
        seconds = time.perf_counter() - started
        client, server = time.process_time() - client, _read_backends_cpu() - server
    trainer.terminate()
    trainer.join()
    step = _read_job(tables.sessions, job.id).progress
    assert step is not None
    assert step["step"] > 0.9 * BEAT_SECONDS, step
    percent = {"worker_core_percent": 100 * client / seconds, "postgres_core_percent": 100 * server / seconds}
    return {"beat_and_log_core_percent": sum(percent.values()), **percent}


def follow(tables: Tables, lease: Lease, collector: Collector, *, seconds: float) -> None:
    """As the worker's monitor does: looks at the files five times a second, tells the database once."""
    end = time.monotonic() + seconds
    flush_at = 0.0
    while time.monotonic() < end:
        collector.collect()
        if time.monotonic() >= flush_at:
            flush_at = time.monotonic() + tables.settings.flush_seconds
            news = collector.take_news()
            with tables.sessions.begin() as session:
                lifecycle.store_news(session, lease, news)
        time.sleep(POLL_SECONDS)


def _train(run_dir: RunDir) -> None:
    """A process of its own, whose time does not count."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    values = {"loss": 1.5, "learning_rate": 2e-4, "grad_norm": 0.7, "tokens_per_second": 3000.0}
    with run_dir.events.open("a", buffering=1) as events, run_dir.log.open("a", buffering=1) as log:
        for step in itertools.count(1):
            event = MetricsEvent(step=step, max_steps=10_000, epoch=step / 1000, tokens=step * 2048, values=values)
            events.write(event.model_dump_json() + "\n")
            for line in range(LINES_PER_SECOND):
                log.write(f"12:00:{line:02} step {step}/10000 loss=1.500000 tokens_per_second=3000\n")
            time.sleep(1)


def _read_backends_cpu() -> float:
    """Of everything below the servers that this process started."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        if "postgres" in process.name():
            times = process.cpu_times()
            total += times.user + times.system
    return total


# --- Steps ------------------------------------------------------------------------------------------------------


def clock(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def find_p99(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def claim_once(tables: Tables, number: int) -> None:
    host_gpus, free_gpus = HOSTS[number % len(HOSTS)]
    claimant = Claimant(f"worker-{number}", "host", 3600, host_gpus=host_gpus, free_gpus=free_gpus)
    assert claim(tables.sessions, claimant) is not None


def claim(sessions: Sessions, claimant: Claimant) -> str | None:
    """As the worker claims: one transaction. The id of the job, if there was one."""
    claimed = lifecycle.claim_job(sessions, claimant)
    return None if claimed is None else claimed[0].id


def poll(tables: Tables, job: Job) -> None:
    with tenant_transaction(tables.api, job.tenant_id) as session:
        assert repository.get_job_view(session, job.id).attempt == job.attempt


def poll_patiently(tables: Tables, job: Job) -> None:
    with contextlib.suppress(OperationalError):
        poll(tables, job)


def list_jobs(tables: Tables, status: JobStatus, count: int) -> Sequence[Job]:
    with tables.sessions() as session:
        return session.scalars(select(Job).where(Job.status == status).order_by(Job.id).limit(count)).all()


def _read_job(sessions: Sessions, job_id: str) -> Job:
    with sessions() as session:
        return repository.get_job(session, job_id)


# --- Tables -----------------------------------------------------------------------------------------------------

_KEYS = """
INSERT INTO api_keys (id, tenant_id, name, key_hash, scopes, max_running)
SELECT 'key_' || lpad(n::text, 26, '0'), 'tenant-' || n % 5, 'bench', decode(md5(n::text), 'hex'), '{}',
       CASE WHEN n % 10 = 0 THEN 1000 END
FROM generate_series(0, :num_keys - 1) AS n
"""
_DATASETS = """
INSERT INTO datasets (id, tenant_id, name, filename, status, store_key, num_bytes, sha256, created_by)
SELECT :dataset || '-' || n, 'tenant-' || n, 'rows', 'rows.jsonl', 'ready', 'none', 1, '',
       'key_' || lpad(n::text, 26, '0')
FROM generate_series(0, 4) AS n
"""
_JOBS = """
INSERT INTO jobs (id, tenant_id, status, model, dataset_id, spec, priority, num_gpus, metadata, created_by,
                  attempt, lease_epoch, started_at, finished_at)
SELECT 'job_' || lpad(n::text, 26, '0'), 'tenant-' || n % :num_keys % 5,
       CASE WHEN n <= :num_finished THEN 'failed' ELSE 'queued' END,
       'tiny', :dataset || '-' || n % :num_keys % 5, CAST(:spec AS jsonb),
       (ARRAY[0, 0, 0, 5, 10])[1 + abs(hashint4(n)) % 5], (ARRAY[0, 0, 1, 1, 2, 4, 8])[1 + abs(hashint4(-n)) % 7],
       jsonb_build_object('team', n % 20), 'key_' || lpad((n % :num_keys)::text, 26, '0'),
       (n <= :num_finished)::int, (n <= :num_finished)::int,
       CASE WHEN n <= :num_finished THEN now() END, CASE WHEN n <= :num_finished THEN now() END
FROM generate_series(1, :num_finished + :num_queued) AS n
"""
_ATTEMPTS = """
INSERT INTO attempts (job_id, number, tenant_id, lease_epoch, worker_id, hostname, ended_at, outcome)
SELECT id, 1, tenant_id, 1, 'worker', 'host', now(), 'failed' FROM jobs WHERE status = 'failed'
"""


def create_database(home: Path, server: str, name: str, *, num_finished: int, num_queued: int) -> Settings:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    url = make_url(server).set(database=name).render_as_string(hide_password=False)
    settings = Settings(home=home, database_url=url)
    engine = build_engine(settings, role=None)
    migrate(engine)
    numbers: Json = {"num_finished": num_finished, "num_queued": num_queued, "num_keys": NUM_KEYS}
    with engine.begin() as rows:
        rows.execute(text(_KEYS), {"num_keys": NUM_KEYS})
        rows.execute(text(_DATASETS), {"dataset": DATASET})
        rows.execute(text(_JOBS), {**numbers, "dataset": DATASET, "spec": SPEC.model_dump_json()})
        rows.execute(text(_ATTEMPTS))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as maintenance:
        maintenance.execute(text("VACUUM ANALYZE"))
        maintenance.execute(text("CHECKPOINT"))
    engine.dispose()
    return settings


@contextlib.contextmanager
def open_tables(settings: Settings) -> Iterator[Tables]:
    engines = [
        build_engine(settings, role, pool_size=1, statement_seconds=PATIENCE_SECONDS)
        for role in (Role.WORKER, Role.API)
    ]
    yield Tables(settings, *map(build_sessions, engines))
    for engine in engines:
        engine.dispose()


if __name__ == "__main__":
    main()
