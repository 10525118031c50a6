"""A merged model by way of the service: what is downloaded answers as base and adapter do, also after a kill."""

import secrets
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cli.main import build_app
from cli.processes import Supervisor
from cli.serve import Service, find_free_port, start_service
from jobs.settings import Settings
from tests.conftest import Servers, create_database
from tests.factories import wait_for_status, wait_until, write_rows
from tests.plain_client import Client

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS = [{"instruction": f"What is {n} plus {n}?", "response": f"It is {2 * n}."} for n in range(12)]
REASON = "The adapter is for a test of exports."


@pytest.fixture
def real(servers: Servers, tmp_path: Path) -> Iterator[Service]:
    settings = Settings(
        home=tmp_path,
        port=find_free_port("127.0.0.1"),
        database_url=create_database(servers.postgres_url, servers.template),
        redis_url=servers.redis_url + secrets.choice("123456789"),
        allow_merged_export=True,
        heartbeat_seconds=1,
        lease_seconds=10,
        reconcile_seconds=0.5,
    )
    with Supervisor(tmp_path / "logs") as supervisor:
        yield start_service(supervisor, settings)


def approve(client: Client, job_id: str) -> None:
    """By two persons: the job asked no safety probes."""
    with Client(client.url, client.post("/keys", {"name": "Ben", "scopes": ["reviews:decide"]})["value"]) as colleague:
        review_id = client.post(f"/adapters/{job_id}/review")["id"]
        for reviewer, each in (("Ann Roe", client), ("Ben Poe", colleague)):
            each.post(f"/reviews/{review_id}/approve", {"reviewer": reviewer, "reason": REASON})
    client.post(f"/adapters/{job_id}/approve", {"reviewer": "Ann Roe", "reason": REASON})


def find_merge() -> psutil.Process | None:
    """The worker's process that looks after the merge that runs below this test."""
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
            if "worker.runner" in words and "merge" in words:
                return next(parent for parent in process.parents() if "celery" in " ".join(parent.cmdline()))
        except psutil.Error:
            continue
    return None


@torch.no_grad()
def compute_logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(torch.arange(1, 60)[None]).logits.float()
    return logits


def test_a_merged_model_is_whole_although_its_worker_was_killed(
    real: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(real.url, real.key) as client:
        dataset = client.wait_for_dataset(client.upload(write_rows(tmp_path / "rows.jsonl", ROWS))["id"])["id"]
        training = {"max_steps": 3, "learning_rate": 5e-3, "max_seq_len": 256}
        request = {"model": "tiny-llama", "dataset": {"id": dataset}, "training": training, "safety": None}
        job_id = client.post("/jobs", request)["id"]
        job = wait_for_status(client, job_id, "succeeded", "failed", seconds=400)
        assert job["status"] == "succeeded", job["reason"]
        approve(client, job_id)

        assert client.post(f"/jobs/{job_id}/export")["status"] == "merging"
        merging = wait_until(find_merge, seconds=120)
        assert merging is not None
        merging.send_signal(signal.SIGKILL)
        export = wait_until(
            lambda: client.get(f"/jobs/{job_id}/export"), lambda found: found["status"] != "merging", seconds=400
        )
        assert export["status"] == "ready", export["reason"]
        monkeypatch.setenv("MEDTUNE_PUBLIC_URL", real.url)
        monkeypatch.setenv("MEDTUNE_API_KEY", real.key)
        done = CliRunner().invoke(build_app("export"), ["export", job_id, "--out", str(tmp_path / "model.tar")])
        assert done.exit_code == 0, done.output
        client.download_adapter(job_id, tmp_path / "adapter.tar.gz")
        stored = list((Path(real.settings.store_location) / "exports").rglob("*.tar"))

    assert len(stored) == 1
    for archive in ("model.tar", "adapter.tar.gz"):
        with tarfile.open(tmp_path / archive) as files:
            files.extractall(tmp_path / "out", filter="data")
    folder = tmp_path / "out" / "model"
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "adapter_card.md"} <= names
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "tiny-llama", dtype=torch.bfloat16)
    before = compute_logits(base)
    together = compute_logits(PeftModel.from_pretrained(base, tmp_path / "out" / "adapter"))
    difference = compute_logits(AutoModelForCausalLM.from_pretrained(folder)) - together
    # A sum in bfloat16 has 8 bits: its error is small beside what the adapter does.
    assert difference.pow(2).mean().sqrt() < 0.1 * (together - before).pow(2).mean().sqrt()
