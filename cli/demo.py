"""`medtune demo`: a real job through every real part, in a temporary home; only model and adapter stay."""

import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from api.schemas import JobRead
from cli.processes import StartFailed, Supervisor
from cli.progress import JobProgress
from cli.serve import Service, find_free_port, lock_home, start_service
from jobs.settings import Settings
from medtune import Client

SAMPLE = Path(__file__).parent.parent / "examples" / "medical_qa.jsonl"

TRAINING: dict[str, Any] = {
    "max_steps": 60,
    "learning_rate": 5e-3,
    "max_seq_len": 256,
    "global_batch_size": 8,
    "eval_every_steps": 20,
    "save_every_steps": 30,
}
SAFETY: dict[str, Any] = {"every_steps": 20, "max_new_tokens": 24}
"""Short answers: a model of random weights has nothing to say."""


def run_demo(console: Console) -> dict[str, Any]:
    """The result as the last line of `medtune demo` shows it."""
    if not SAMPLE.is_file():
        raise StartFailed(f"the sample dataset {SAMPLE} is not there; run the demo from a checkout")
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="medtune-demo-"))
    for name in [name for name in os.environ if name.startswith("MEDTUNE_")]:
        del os.environ[name]  # The demo touches no server, store or model of anybody's.
    settings = Settings(home=folder / "home", models_dir=folder / "models", port=find_free_port("127.0.0.1"))
    try:
        with lock_home(settings.home), Supervisor(settings.home / "logs") as supervisor:
            console.print(f"starting Postgres, Redis, the API and its workers in {settings.home}")
            service = start_service(supervisor, settings)
            console.print(f"the service answers at {service.url} after {time.monotonic() - started:.1f} s")
            with Client(service.url, service.key) as client:
                result = _run_job(client, service, folder, console)
    finally:
        shutil.rmtree(settings.home, ignore_errors=True)
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def _run_job(client: Client, service: Service, folder: Path, console: Console) -> dict[str, Any]:
    dataset = client.wait_for_dataset(client.upload_dataset(SAMPLE).id)
    console.print(f"dataset {dataset.id}: {dataset.rows} rows, {dataset.status}")
    request = {
        "name": "demo",
        "model": "tiny-llama",
        "dataset": {"id": dataset.id},
        "validation": {"fraction": 0.1},
        "training": TRAINING,
        "safety": SAFETY,
    }
    job = _watch_job(client, client.create_job(request).id, console)
    _show_safety(client, job.id, console)
    losses = [metric.values["loss"] for metric in client.iter_metrics(job.id) if "loss" in metric.values]
    assert service.settings.models_dir is not None
    return {
        "job": job.id,
        "status": job.status,
        "model": str(service.settings.models_dir / "tiny-llama"),
        "adapter": str(_unpack_adapter(client, job.id, folder)) if job.adapter else None,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "verification": job.verification,
        "reason": job.reason,
    }


def _watch_job(client: Client, job_id: str, console: Console) -> JobRead:
    with JobProgress(console) as progress:
        return client.wait_for_job(job_id, on_poll=progress.show, poll_seconds=0.2)


def _show_safety(client: Client, job_id: str, console: Console) -> None:
    """The last round, in which every probe is asked."""
    for checked in client.get(f"/jobs/{job_id}/safety", limit=100)["data"]:
        if checked["is_last"]:
            asked = checked["summary"]["probes"]["asked"]
            console.print(f"{asked} safety probes asked, with the adapter and without: {checked['message']}")


def _unpack_adapter(client: Client, job_id: str, folder: Path) -> Path:
    archive = folder / "adapter.tar.gz"
    client.download_adapter(job_id, archive)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()
    return folder / "adapter"
