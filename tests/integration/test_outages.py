"""Rings and servers that go missing."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
import redis

from cli.embedded import as_postgres_user
from cli.processes import Supervisor
from cli.serve import Service, find_free_port, start_service
from jobs.api_keys import hash_key
from jobs.database import Role, build_engine, build_sessions
from jobs.repository import identify
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import FINAL
from jobs.submission import submit_job
from jobs.task_queue import Queue, build_celery, ring
from tests.conftest import FAKE_TRAINER, FAST
from tests.factories import create_model_folder, is_alive, submit_script, upload_script, wait_for_status, wait_until
from tests.plain_client import Client


def test_a_lost_ring_is_healed(service: Service, client: Client, tmp_path: Path) -> None:
    """A row that nobody rang for, as after a crash between commit and ring."""
    dataset_id = upload_script(client, tmp_path)
    spec = JobSpec.model_validate({"model": "tiny", "dataset": {"id": dataset_id}})
    engine = build_engine(service.settings, Role.API)
    with build_sessions(engine).begin() as session:
        identity = identify(session, key_hash=hash_key(service.key, service.settings.load_secret_key()))
        assert identity is not None
        job_id = submit_job(session, identity, service.settings, spec).id
    engine.dispose()

    assert wait_for_status(client, job_id, "succeeded", "failed")["status"] == "succeeded"


def test_forged_and_doubled_rings_are_harmless(service: Service, client: Client, tmp_path: Path) -> None:
    celery = build_celery(service.settings)
    for _ in range(100):
        ring(celery, Queue.TRAIN)
        ring(celery, Queue.CHECK)
    celery.close()

    job_id = submit_script(client, tmp_path)
    job = wait_for_status(client, job_id, "succeeded", "failed")

    assert (job["status"], job["attempt"]) == ("succeeded", 1)


@dataclass
class OwnServers:
    """A service whose servers a test may harm."""

    client: Client
    supervisor: Supervisor
    database_url: str
    redis_url: str
    redis: psutil.Process
    postgres: psutil.Process


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnServers]:
    home = tmp_path / "home"
    create_model_folder(home / "models" / "tiny")
    settings = Settings(home=home, port=find_free_port("127.0.0.1"), trainer_command=FAKE_TRAINER, **FAST)
    with Supervisor(home / "logs") as supervisor:
        service = start_service(supervisor, settings)
        children = {child.name(): child for child in psutil.Process().children() if is_below(child, home)}
        client = Client(service.url, service.key)
        urls = [url.get_secret_value() for url in (service.settings.database_url, service.settings.redis_url) if url]
        yield OwnServers(client, supervisor, urls[0], urls[1], children["redis-server"], children["postgres"])
        client.close()
        children["redis-server"].resume()


def is_below(process: psutil.Process, home: Path) -> bool:
    return str(home) in process.cwd() or str(home) in " ".join(process.cmdline())


def test_a_hung_redis_neither_fails_nor_slows_a_post(own: OwnServers, tmp_path: Path) -> None:
    dataset_id = upload_script(own.client, tmp_path)
    own.redis.suspend()
    own.client.http.timeout = httpx.Timeout(2)  # Ringing inside the request took over a minute.

    ids = [own.client.post("/jobs", {"model": "tiny", "dataset": {"id": dataset_id}})["id"] for _ in range(5)]
    assert own.client.get("/readyz")["broker"] == "unreachable"
    own.redis.resume()

    for job_id in ids:
        assert wait_for_status(own.client, job_id, "succeeded", "failed", seconds=60)["status"] == "succeeded"


def test_a_lost_database_is_a_503_and_a_short_outage_kills_no_training(own: OwnServers, tmp_path: Path) -> None:
    job_id = submit_script(own.client, tmp_path, steps=100, step_seconds=0.05)
    wait_for_status(own.client, job_id, "running")
    command = own.postgres.cmdline()
    own.postgres.send_signal(signal.SIGINT)
    wait_until(lambda: not is_alive(own.postgres))

    answer = own.client.http.get("/jobs")
    own.supervisor.start("postgres-again", as_postgres_user(command), stop_signal=signal.SIGINT, is_server=True)
    wait_until(lambda: own.client.http.get("/readyz").status_code, lambda status: status == 200)
    job = wait_for_status(own.client, job_id, "succeeded", "failed")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert answer.headers["Retry-After"] == "5"
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    steps = [metric["step"] for page in own.client.follow(f"/jobs/{job_id}/metrics") for metric in page]
    assert steps == list(range(1, 101))


def test_cut_connections_fail_no_job(own: OwnServers, tmp_path: Path) -> None:
    """Every connection of the workers is cut again and again while jobs start, run and end."""
    ids = [submit_script(own.client, tmp_path, steps=10, step_seconds=0.02) for _ in range(3)]
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'medtune-medtune_worker'"

    def cut_and_look() -> list[str]:
        with psycopg.connect(own.database_url, autocommit=True) as connection:
            connection.execute(cut)
        return [own.client.get(f"/jobs/{job_id}")["status"] for job_id in ids]

    statuses = wait_until(cut_and_look, lambda statuses: all(s in FINAL for s in statuses), seconds=90, every=0.3)

    assert statuses == ["succeeded"] * 3


def test_a_message_that_is_none_ends_no_service(own: OwnServers, tmp_path: Path) -> None:
    """It ends the worker that reads it; the service starts another."""
    with redis.Redis.from_url(own.redis_url) as connection:
        connection.lpush("medtune:train", "not json")
    job_id = submit_script(own.client, tmp_path)

    def look() -> str:
        own.supervisor.check()
        return str(own.client.get(f"/jobs/{job_id}")["status"])

    assert wait_until(look, lambda status: status in FINAL, seconds=60) == "succeeded"
