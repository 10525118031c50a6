"""Several jobs on one machine never share a card, and a large one gets its turn."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.processes import Supervisor
from cli.serve import Service, find_free_port, start_service
from jobs.settings import Settings
from tests.conftest import FAKE_TRAINER, FAST, Servers, create_database
from tests.factories import create_model_folder, find_trainer, submit_script, wait_for_status
from tests.plain_client import Client


@pytest.fixture(scope="module")
def four_gpus(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A worker that is told that it has four; the fake trainer needs none."""
    home = tmp_path_factory.mktemp("gpus")
    create_model_folder(home / "models" / "tiny")
    settings = Settings(
        home=home,
        port=find_free_port("127.0.0.1"),
        database_url=create_database(servers.postgres_url, servers.template),
        redis_url=servers.redis_url + secrets.choice("123456789"),
        trainer_command=FAKE_TRAINER,
        worker_gpus=4,
        patience_seconds=3,
        **FAST,
    )
    with Supervisor(home / "logs") as supervisor:
        yield start_service(supervisor, settings)


@pytest.fixture
def client(four_gpus: Service) -> Iterator[Client]:
    connection = Client(four_gpus.url, four_gpus.key)
    yield connection
    connection.close()


def submit(client: Client, folder: Path, gpus: int, **script: object) -> str:
    return submit_script(client, folder, {"resources": {"gpus": gpus}}, step_seconds=0.05, **script)


def read_devices(service: Service, job_id: str) -> set[str]:
    environment = find_trainer(service.settings.runs_dir / job_id / "attempt-1").environ()
    return set(environment["CUDA_VISIBLE_DEVICES"].split(","))


def test_jobs_run_side_by_side_each_on_its_own_gpus(client: Client, four_gpus: Service, tmp_path: Path) -> None:
    ids = [submit(client, tmp_path, gpus, steps=2000) for gpus in (2, 1, 1)]
    for job_id in ids:
        wait_for_status(client, job_id, "running")
    devices = [read_devices(four_gpus, job_id) for job_id in ids]
    waiting = submit(client, tmp_path, 1)

    assert sorted(len(names) for names in devices) == [1, 1, 2]
    assert set.union(*devices) == {"0", "1", "2", "3"}
    assert client.get(f"/jobs/{waiting}")["status"] == "queued"

    client.post(f"/jobs/{ids[1]}/cancel")
    assert wait_for_status(client, waiting, "succeeded", "failed")["status"] == "succeeded"
    for job_id in ids:
        client.http.post(f"/jobs/{job_id}/cancel")
        wait_for_status(client, job_id, "cancelled")


def test_a_large_job_gets_its_turn_though_small_ones_keep_coming(client: Client, tmp_path: Path) -> None:
    """Each small one lasts for two seconds, and there is always another; the large one waits for three at most."""
    small = [submit(client, tmp_path, 1, steps=40) for _ in range(4)]
    for job_id in small:
        wait_for_status(client, job_id, "running")
    large = submit(client, tmp_path, 4)
    small += [submit(client, tmp_path, 1, steps=40) for _ in range(12)]

    assert wait_for_status(client, large, "succeeded", "failed", seconds=60)["status"] == "succeeded"
    assert "queued" in {client.get(f"/jobs/{job_id}")["status"] for job_id in small}
    for job_id in small:
        wait_for_status(client, job_id, "succeeded", seconds=60)
