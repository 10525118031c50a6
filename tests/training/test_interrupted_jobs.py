"""Jobs of the real trainer that are interrupted end with the same adapter, byte by byte, as one that is not."""

import secrets
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.processes import Supervisor
from cli.serve import Service, find_free_port, start_service
from jobs.settings import Settings
from jobs.status import FINAL
from tests.conftest import Servers, create_database
from tests.factories import find_trainer, read_all, wait_for_status, wait_until
from tests.plain_client import Client

ROWS = Path(__file__).parent.parent.parent / "examples" / "medical_qa.jsonl"
STEPS, SAVE_EVERY = 12, 3


@pytest.fixture(scope="module")
def real(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("real")
    settings = Settings(
        home=home,
        port=find_free_port("127.0.0.1"),
        database_url=create_database(servers.postgres_url, servers.template),
        redis_url=servers.redis_url + secrets.choice("123456789"),
        heartbeat_seconds=0.5,
        flush_seconds=0.1,
        reconcile_seconds=0.5,
        backoff_seconds=0.1,
    )
    with Supervisor(home / "logs") as supervisor:
        yield start_service(supervisor, settings)


@pytest.fixture(scope="module")
def run(real: Service) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs the job, `interrupt` it once it has made 5 steps, and returns what came of it with its weights."""
    client = Client(real.url, real.key)
    dataset = client.wait_for_dataset(client.upload(ROWS)["id"])["id"]
    request = {
        "model": "tiny-llama",
        "dataset": {"id": dataset},
        "training": {
            "max_steps": STEPS,
            "save_every_steps": SAVE_EVERY,
            "global_batch_size": 4,
            "max_seq_len": 128,
            "lora": {"dropout": 0.1},
        },
        "safety": None,
    }

    def run_(interrupt: Callable[[str], None] | None = None) -> dict[str, Any]:
        job_id = client.post("/jobs", request)["id"]
        if interrupt is not None:
            wait_until(lambda: (client.get(f"/jobs/{job_id}")["progress"] or {"step": 0})["step"] >= 5, seconds=90)
            interrupt(job_id)
        job = wait_for_status(client, job_id, *FINAL, seconds=300)
        assert job["status"] == "succeeded", job["reason"]
        archive = real.settings.home / f"{job_id}.tar.gz"
        client.download_adapter(job_id, archive)
        with tarfile.open(archive) as files:
            weights = files.extractfile("adapter/adapter_model.safetensors")
            assert weights is not None
            job["weights"] = weights.read()
        job["steps"] = {attempt: [] for attempt in range(1, job["attempt"] + 1)}
        for metric in read_all(client, f"/jobs/{job_id}/metrics"):
            job["steps"][metric["attempt"]].append(metric["step"])
        job["client"] = client
        return job

    yield run_
    client.close()


@pytest.fixture(scope="module")
def undisturbed(run: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    job = run()
    assert job["attempt"] == 1
    return job


def assert_same_but_resumed(job: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    first, second = job["steps"][1], [step for step in job["steps"][2] if step > 0]
    assert second[0] - 1 >= max(first) - SAVE_EVERY
    assert (second[0] - 1) % SAVE_EVERY == 0 or second[0] - 1 == max(first)
    assert second[-1] == STEPS
    assert job["attempt"] == 2
    assert job["weights"] == undisturbed["weights"]


def test_a_killed_trainer_goes_on_from_its_checkpoint(
    real: Service, run: Callable[..., dict[str, Any]], undisturbed: dict[str, Any]
) -> None:
    def kill(job_id: str) -> None:
        find_trainer(real.settings.runs_dir / job_id / "attempt-1").kill()

    assert_same_but_resumed(run(kill), undisturbed)


def test_a_paused_job_goes_on_when_it_is_resumed(
    real: Service, run: Callable[..., dict[str, Any]], undisturbed: dict[str, Any]
) -> None:
    client = undisturbed["client"]

    def pause(job_id: str) -> None:
        client.post(f"/jobs/{job_id}/pause")
        wait_for_status(client, job_id, "paused", seconds=60)
        client.post(f"/jobs/{job_id}/resume")

    job = run(pause)

    assert_same_but_resumed(job, undisturbed)
    assert job["restarts"] == {"infrastructure": 0, "no_progress": 0}


def test_a_killed_worker_is_replaced_and_its_job_goes_on(
    real: Service, run: Callable[..., dict[str, Any]], undisturbed: dict[str, Any]
) -> None:
    """The pool process that follows the trainer; the worker starts another, which finds what the dead one left."""

    def kill(job_id: str) -> None:
        runner = find_trainer(real.settings.runs_dir / job_id / "attempt-1").parents()
        pool = next(process for process in runner if "celery" in " ".join(process.cmdline()))
        psutil.Process(pool.pid).kill()

    assert_same_but_resumed(run(kill), undisturbed)
