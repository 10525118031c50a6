"""How long things take to start. Run: python -m bench.startup.

- `api_cold_start_seconds`: from `medtune api` to the first answer.
- `post_to_trainer_seconds`: from POST /jobs on an idle worker to the trainer's first line of Python.
- `first_step_over_imports`: from a trainer's start to the end of its first step, over the bare import time of torch,
  transformers and peft on the same machine.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from bench.report import write_result
from cli.demo import SAMPLE
from cli.processes import Supervisor
from cli.serve import Service, build_environment, find_free_port, start_service
from jobs.settings import Settings
from tests.plain_client import Client

ROUNDS = 5
TRAINING = {"max_steps": 2, "max_seq_len": 128, "global_batch_size": 2, "packing": False, "eval_every_steps": 100}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as folder:
        home = Path(folder)
        with Supervisor(home / "logs") as supervisor:
            service = start_service(supervisor, Settings(home=home, port=find_free_port("127.0.0.1")))
            client = Client(service.url, service.key)
            dataset = client.wait_for_dataset(client.upload(SAMPLE)["id"])["id"]
            runs = [measure_run(client, service, dataset) for _ in range(ROUNDS)]
            cold = [measure_cold_start(service) for _ in range(ROUNDS)]
        imports = [measure_imports() for _ in range(ROUNDS)]
    first_step = statistics.median(first_step for _, first_step in runs)
    figures = {
        "api_cold_start_seconds": statistics.median(cold),
        "post_to_trainer_seconds": statistics.median(start for start, _ in runs),
        "first_step_over_imports": first_step / statistics.median(imports),
        "first_step_seconds": first_step,
        "imports_seconds": statistics.median(imports),
    }
    write_result("startup", figures)


def measure_cold_start(service: Service) -> float:
    port = find_free_port("127.0.0.1")
    environment = build_environment(service.settings.model_copy(update={"port": port}))
    started = time.perf_counter()
    process = subprocess.Popen(
        [Path(sys.executable).parent / "medtune", "api"],
        env={"PATH": "/usr/bin:/bin", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not answers(f"http://127.0.0.1:{port}/healthz"):
            assert process.poll() is None
        return time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1).is_success
    except httpx.TransportError:
        time.sleep(0.005)
        return False


def measure_run(client: Client, service: Service, dataset: str) -> tuple[float, float]:
    """Seconds from POST to the trainer's first line, and from there to its first step's end."""
    posted = time.time()
    request = {"model": "tiny-llama", "dataset": {"id": dataset}, "training": TRAINING, "safety": None}
    job = client.post("/jobs", request)
    job = client.wait_for_job(job["id"], lambda _job: None, poll_seconds=0.2)
    assert job["status"] == "succeeded", job["reason"]
    lines = (service.settings.runs_dir / job["id"] / "attempt-1" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    started = read_time(next(e for e in events if e["type"] == "phase" and e["phase"] == "starting"))
    first_step = read_time(next(e for e in events if e["type"] == "metrics" and e["step"] == 1))
    return started - posted, first_step - started


def read_time(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def measure_imports() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, transformers, peft"], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
