"""Throughput of POST /jobs and GET /jobs/{id} beside the bare peer (bench/bare_api.py), on the same Postgres.

Run: python -m bench.api. Needs `wrk`, which loads both alike. No worker runs, so that nothing else uses the cores.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.report import read_figures, write_result
from cli.embedded import start_postgres, start_redis
from cli.processes import Supervisor
from cli.serve import MEDTUNE, build_environment, find_free_port
from jobs import lifecycle
from jobs.database import Role, build_engine, build_sessions, tenant_transaction
from jobs.lifecycle import Claimant
from jobs.models import Dataset
from jobs.repository import list_keys
from jobs.schema import migrate
from jobs.settings import Settings
from jobs.status import DatasetStatus
from tests.factories import create_model_folder
from tests.plain_client import Client

DATASET = "ds_00000000000000000000000001"
ROUNDS = 5
SECONDS = 4
KEY = "bench-bench-bench-bench"


@dataclass(frozen=True)
class Load:
    requests_per_second: float
    p99_ms: float


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-api-") as folder:
        home = Path(folder)
        with Supervisor(home / "logs") as supervisor:
            settings = start_ours(supervisor, home)
            bare = start_bare(supervisor, settings)
            ours = f"http://127.0.0.1:{settings.port}"
            job_id = start_job(settings, Client(ours, KEY))
            write_result("api", read_figures("api") | measure(home, ours, bare, job_id))


def measure(home: Path, ours: str, bare: str, job_id: str) -> dict[str, float]:
    script = home / "post.lua"
    body = json.dumps({"model": "tiny", "dataset": {"id": DATASET}})
    script.write_text(f"wrk.method='POST'\nwrk.body='{body}'\nwrk.headers['Content-Type']='application/json'\n")
    loads: dict[str, list[Load]] = {"ours poll": [], "bare poll": [], "ours post": [], "bare post": []}
    for _ in range(ROUNDS):
        for name, url in (("ours", ours), ("bare", bare)):
            loads[f"{name} poll"].append(run_wrk(f"{url}/jobs/{job_id}", connections=8))
            loads[f"{name} post"].append(run_wrk(f"{url}/jobs", connections=8, script=script))
    rates = {name: statistics.median(load.requests_per_second for load in runs) for name, runs in loads.items()}
    moderate = [run_wrk(f"{ours}/jobs/{job_id}", connections=2) for _ in range(ROUNDS)]
    return {
        "post_over_bare": rates["ours post"] / rates["bare post"],
        "poll_over_bare": rates["ours poll"] / rates["bare poll"],
        "poll_p99_ms": statistics.median(load.p99_ms for load in moderate),
        "poll_per_second": rates["ours poll"],
        "bare_poll_per_second": rates["bare poll"],
        "post_per_second": rates["ours post"],
        "bare_post_per_second": rates["bare post"],
        "post_p99_ms": statistics.median(load.p99_ms for load in loads["ours post"]),
    }


def run_wrk(url: str, *, connections: int, script: Path | None = None) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", "-H", f"Authorization: Bearer {KEY}"]
    output = subprocess.check_output([*command, *(["-s", str(script)] if script else []), url], text=True)
    if "Non-2xx" in output:
        raise SystemExit(output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", output)
    assert rate is not None
    assert p99 is not None
    return Load(float(rate[1]), float(p99[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[p99[2]])


def start_ours(supervisor: Supervisor, home: Path, **fields: Any) -> Settings:
    create_model_folder(home / "models" / "tiny")
    settings = Settings(
        home=home,
        port=find_free_port("127.0.0.1"),
        database_url=start_postgres(supervisor, home / "postgres"),
        redis_url=start_redis(supervisor, home / "redis"),
        bootstrap_key=KEY,
        log_level="WARNING",
        **fields,
    )
    engine = build_engine(settings, role=None)
    migrate(engine)
    engine.dispose()
    supervisor.start("api", [*MEDTUNE, "api"], environment=build_environment(settings))
    wait_for(supervisor, f"http://127.0.0.1:{settings.port}/healthz")
    add_dataset(settings)
    return settings


def start_bare(supervisor: Supervisor, settings: Settings) -> str:
    port = find_free_port("127.0.0.1")
    assert settings.database_url is not None
    environment = {
        "BARE_DATABASE_URL": settings.database_url.get_secret_value(),
        "BARE_SECRET_KEY": settings.load_secret_key().decode(),
    }
    command = [sys.executable, "-m", "uvicorn", "bench.bare_api:app", "--port", str(port), "--log-level", "warning"]
    supervisor.start("bare", command, environment=environment)
    url = f"http://127.0.0.1:{port}"
    wait_for(supervisor, f"{url}/openapi.json")
    return url


def start_job(settings: Settings, client: Client) -> str:
    """A job that a worker owns: what people poll. A queued one also has its place counted, which the peer does not."""
    job_id = client.post("/jobs", {"model": "tiny", "dataset": {"id": DATASET}})["id"]
    engine = build_engine(settings, Role.WORKER)
    assert lifecycle.claim_job(build_sessions(engine), Claimant("bench", "bench", 3600)) is not None
    engine.dispose()
    return str(job_id)


def add_dataset(settings: Settings) -> None:
    engine = build_engine(settings, Role.API)
    sessions = build_sessions(engine)
    with sessions() as session:
        key = list_keys(session)[0]
    with tenant_transaction(sessions, key.tenant_id) as session:
        session.add(
            Dataset(
                id=DATASET,
                tenant_id=key.tenant_id,
                name="rows",
                filename="rows.jsonl",
                status=DatasetStatus.READY,
                store_key="none",
                num_bytes=1,
                sha256="",
                created_by=key.id,
            )
        )
    engine.dispose()


def wait_for(supervisor: Supervisor, url: str) -> None:
    def answers() -> bool:
        try:
            return httpx.get(url, timeout=1).is_success
        except httpx.TransportError:
            return False

    supervisor.wait_until(answers, url, 60)


if __name__ == "__main__":
    main()
