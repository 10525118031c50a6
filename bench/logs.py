"""Log lines per second from a trainer's file into Postgres, through the worker's own monitor.

Run: python -m bench.logs. The trainer is `cat`, so that only the way into the database counts.
"""

import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import func, select

from bench.report import write_result
from cli.embedded import start_postgres
from cli.processes import Supervisor
from jobs import lifecycle, repository
from jobs.api_keys import create_key
from jobs.database import Role, Sessions, build_engine, build_sessions, tenant_transaction
from jobs.ids import new_id
from jobs.lifecycle import Claimant, Lease
from jobs.models import Dataset, Job, LogChunk
from jobs.repository import Identity
from jobs.schema import migrate
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import DatasetStatus
from jobs.store import Store
from jobs.submission import submit_job
from tests.factories import create_model_folder
from trainer_core.run_dir import RunDir
from worker.checkpoints import CheckpointShipper
from worker.collector import Collector
from worker.gpus import GpuSlots
from worker.heartbeat import Heartbeat, read_clock
from worker.monitor import Monitor

NUM_LINES = 1_000_000
ROUNDS = 5


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-logs-") as folder:
        home = Path(folder)
        with Supervisor(home / "logs") as supervisor:
            url = start_postgres(supervisor, home / "postgres")
            settings = Settings(home=home, database_url=url, trainer_command=["sh", "-c", f"cat {home}/lines #"])
            engine = build_engine(settings, role=None)
            migrate(engine)
            engine.dispose()
            create_model_folder(home / "models" / "tiny")
            write_lines(home / "lines")
            seconds = [ship(settings, round_) for round_ in range(ROUNDS)]
    rate = NUM_LINES / statistics.median(seconds)
    write_result("logs", {"lines_per_second": rate, "num_lines": NUM_LINES, "seconds": statistics.median(seconds)})


def write_lines(path: Path) -> None:
    """As a trainer prints them, each different."""
    with path.open("w") as file:
        for n in range(NUM_LINES):
            file.write(f"12:00:{n % 60:02} step {n}/{NUM_LINES} loss={10 / (n + 1):.6f} tokens_per_second={n % 997}\n")


def ship(settings: Settings, round_: int) -> float:
    api = build_engine(settings, Role.API)
    worker = build_engine(settings, Role.WORKER)
    sessions = build_sessions(worker)
    job, lease = start_job(build_sessions(api), sessions, settings)
    run_dir = RunDir(settings.home / f"run-{round_}")
    run_dir.path.mkdir()
    with sessions() as session:
        attempt = repository.get_attempt(session, job.id, job.attempt)
    shipper = CheckpointShipper(sessions, Store(settings.store_location), lease, run_dir, attempt=1, keep=2)
    with GpuSlots(settings) as slots, Heartbeat(settings, lease, read_clock()) as heartbeat:
        monitor = Monitor(
            settings,
            sessions,
            lease,
            run_dir,
            heartbeat=heartbeat,
            collector=Collector(run_dir, attempt, (0, 0)),
            shipper=shipper,
            slots=slots,
            is_worker_stopping=lambda: False,
        )
        started = time.perf_counter()
        exit_code = monitor.run("train")[0].exit_code
        seconds = time.perf_counter() - started
    shipper.finish(10)
    with sessions() as session:
        stored = session.scalar(select(func.sum(LogChunk.num_lines)).where(LogChunk.job_id == lease.job_id))
    assert (exit_code, stored) == (0, NUM_LINES), (exit_code, stored)
    api.dispose()
    worker.dispose()
    return seconds


def start_job(api: Sessions, worker: Sessions, settings: Settings) -> tuple[Job, Lease]:
    dataset_id = new_id("ds")
    with api.begin() as session:
        key, _ = create_key(session, b"bench", name="bench")
    identity = Identity(key.id, key.tenant_id, is_admin=False)
    with tenant_transaction(api, identity.tenant_id) as session:
        session.add(
            Dataset(
                id=dataset_id,
                tenant_id=identity.tenant_id,
                name="rows",
                filename="rows.jsonl",
                status=DatasetStatus.READY,
                store_key="none",
                num_bytes=1,
                sha256="",
                created_by=identity.key_id,
            )
        )
        session.flush()
        spec = JobSpec.model_validate({"model": "tiny", "dataset": {"id": dataset_id}})
        submit_job(session, identity, settings, spec)
    claimed = lifecycle.claim_job(worker, Claimant("bench", "bench", 600))
    assert claimed is not None
    return claimed


if __name__ == "__main__":
    main()
