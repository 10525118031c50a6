"""`medtune doctor` says what is wrong, and what to do, in one line; and its exit code says whether anything is."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text

from cli.embedded import start_postgres, start_redis
from cli.processes import Supervisor
from cli.serve import MEDTUNE, Service, build_environment, find_free_port
from jobs.api_keys import create_key
from jobs.database import Role, Sessions
from jobs.ids import new_id
from jobs.models import RowShard
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.signing_key import ensure_signing_key
from jobs.task_queue import Queue
from jobs.vault_key import get_vault_key_file, load_vault_keyring
from jobs.workers import WorkerDescription, show_presence
from tests.conftest import Servers, create_database
from tests.factories import is_alive, wait_until
from tests.integration.rows import add_dataset, claim, submit
from trainer_core.planning.hardware import Hardware
from trainer_core.run_dir import RunDir
from worker.attempt import OWNER_FILE
from worker.launcher import MARKER
from worker.machine import HOSTNAME, get_owners_dir, try_to_lock

OpenSessions = Callable[[Role | None], Sessions]


@dataclass(frozen=True)
class Report:
    exit_code: int
    checks: list[dict[str, Any]]

    def find(self, check: str, level: str) -> str:
        """The message of the one such line, with its remedy."""
        found = [f"{c['message']} -> {c['remedy']}" for c in self.checks if (c["check"], c["level"]) == (check, level)]
        assert len(found) == 1, self.checks
        return found[0]

    @property
    def errors(self) -> list[str]:
        return [check["check"] for check in self.checks if check["level"] == "error"]


def run_doctor(settings: Settings, *options: str) -> Report:
    result = call_doctor(settings, "--quick", "--json", *options)
    answer = json.loads(result.stdout)
    assert answer["ok"] == (result.returncode == 0), result
    return Report(result.returncode, answer["checks"])


def call_doctor(settings: Settings, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*MEDTUNE, "doctor", *options]
    environment = {**os.environ, **build_environment(settings)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert result.stderr == ""
    for secret in (settings.database_url, settings.redis_url):
        if secret is not None:
            password = make_url(secret.get_secret_value()).password
            assert str(password) not in result.stdout
    return result


def change(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update=values)


def test_a_healthy_service_is_one_line_for_each_thing_and_exit_code_0(service: Service) -> None:
    result = call_doctor(service.settings)

    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout
    assert all(line.split()[0] in ("ok", "warning") for line in lines)
    named = {line.split(None, 1)[1].split(":")[0] for line in lines}
    assert {"database", "migrations", "roles", "redis", "store", "models", "gpus", "disk", "rows"} <= named
    assert {"signing key", "vault key"} <= named
    assert {"torch", "bitsandbytes", "deepspeed", "namespaces", "workers", "processes", "run folders"} <= named


def test_a_machine_without_workers_is_warned_and_nothing_is_broken(settings: Settings) -> None:
    report = run_doctor(settings)

    assert (report.exit_code, report.errors) == (0, [])
    assert [c["message"] for c in report.checks if c["level"] == "warning"] == [
        "none lives for the queue train",
        "none lives for the queue check",
    ]


def test_a_database_that_is_down(settings: Settings) -> None:
    url = f"postgresql://medtune:very-secret@127.0.0.1:{find_free_port('127.0.0.1')}/medtune"

    report = run_doctor(change(settings, database_url=SecretStr(url)))

    assert (report.exit_code, report.errors) == (1, ["database"])
    assert "Connection refused" in report.find("database", "error")
    assert "start PostgreSQL" in report.find("database", "error")


def test_a_schema_that_is_behind(settings: Settings, servers: Servers) -> None:
    url = create_database(servers.postgres_url, "template1")

    report = run_doctor(change(settings, database_url=SecretStr(url)))

    assert (report.exit_code, report.errors) == (1, ["migrations"])
    assert "medtune migrate" in report.find("migrations", "error")


def test_a_redis_that_is_down(settings: Settings) -> None:
    url = f"redis://:very-secret@127.0.0.1:{find_free_port('127.0.0.1')}/0"

    report = run_doctor(change(settings, redis_url=SecretStr(url)))

    assert (report.exit_code, report.errors) == (1, ["redis"])
    assert "start Redis" in report.find("redis", "error")


def test_less_free_disk_than_the_reserve(settings: Settings) -> None:
    report = run_doctor(change(settings, disk_reserve_bytes=2**60))

    assert (report.exit_code, report.errors) == (1, ["disk"])
    assert "MEDTUNE_DISK_RESERVE_BYTES" in report.find("disk", "error")


def test_keys_that_cannot_be_used_and_none_is_made(settings: Settings) -> None:
    fresh = run_doctor(settings)
    assert "the first" in fresh.find("signing key", "ok")
    assert "the first" in fresh.find("vault key", "ok")
    assert list(settings.home.glob("*key*")) == []
    key = ensure_signing_key(settings)
    load_vault_keyring(settings)
    well = run_doctor(settings)
    assert (well.exit_code, str(key) in well.find("signing key", "ok")) == (0, True)

    key.chmod(0o644)
    get_vault_key_file(settings).write_bytes(bytes(range(128, 256)))
    readable = run_doctor(settings)
    key.unlink()
    gone = run_doctor(settings)

    assert (readable.exit_code, readable.errors) == (1, ["signing key", "vault key"])
    assert "chmod 600" in readable.find("signing key", "error")
    assert "a line is no version and key" in readable.find("vault key", "error")
    assert "from a backup" in gone.find("signing key", "error")


def test_the_key_of_a_vault_that_is_not_here_or_another(settings: Settings, open_sessions: OpenSessions) -> None:
    sessions = open_sessions(None)
    with sessions.begin() as session:
        key, _ = create_key(session, b"secret", name="test", tenant_id="a")
    load_vault_keyring(settings)
    dataset_id = add_dataset(sessions, Identity(key.id, "a", is_admin=True))
    with sessions.begin() as session:
        columns = {"tenant_id": "a", "is_uploaded": True, "key_version": 2, "shard": 0, "hashes": b""}
        session.add(RowShard(dataset_id=dataset_id, **columns))

    other = run_doctor(settings)
    get_vault_key_file(settings).unlink()
    elsewhere = run_doctor(settings)
    with sessions.begin() as session:
        show_presence(session, WorkerDescription(new_id("worker"), Queue.CHECK, HOSTNAME, 1, 0, Hardware()))
    here = run_doctor(settings)

    assert "no version 2" in other.find("vault key", "error")
    assert "from a backup" in elsewhere.find("vault key", "warning")
    assert "from a backup" in here.find("vault key", "error")


def test_a_home_that_the_user_may_not_enter_is_a_finding_and_not_the_end(settings: Settings) -> None:
    """Without the rights of root, which pass every mode."""
    home = settings.home / "home"
    home.mkdir(mode=0)
    ordinary = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    environment = {**os.environ, **build_environment(change(settings, home=home, models_dir=home / "models"))}
    command = [*ordinary, *MEDTUNE, "doctor", "--quick", "--json"]

    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)

    assert (result.returncode, result.stderr) == (1, "")
    errors = {check["check"] for check in json.loads(result.stdout)["checks"] if check["level"] == "error"}
    assert {"store", "files", "signing key", "vault key"} <= errors


def test_a_store_that_cannot_be_written(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    report = run_doctor(change(settings, store_url=str(tmp_path / "file" / "store")))

    assert (report.exit_code, report.errors) == (1, ["store"])


def test_a_setting_that_cannot_be(settings: Settings) -> None:
    report = run_doctor(change(settings, port=-1))

    assert (report.exit_code, report.errors) == (1, ["settings"])
    assert "MEDTUNE_PORT" in report.find("settings", "error")


@pytest.fixture
def job_id(open_sessions: OpenSessions, settings: Settings) -> str:
    api = open_sessions(Role.API)
    with api.begin() as session:
        key, _ = create_key(session, b"secret", name="test", tenant_id="a")
        identity = Identity(key.id, "a", is_admin=False)
    return str(submit(api, identity, settings, add_dataset(api, identity)).id)


def test_a_row_that_breaks_a_rule(settings: Settings, open_sessions: OpenSessions, job_id: str) -> None:
    with open_sessions(None).begin() as session:
        columns = "job_id, tenant_id, model, store_key, num_bytes, sha256"
        adapter = f"INSERT INTO adapters ({columns}) VALUES (:job, 'a', 'tiny', 'x', 1, '')"
        session.execute(text(adapter), {"job": job_id})

    report = run_doctor(settings)

    assert (report.exit_code, report.errors) == (1, ["rows"])
    assert f"only a job that succeeded has an adapter: {job_id}" in report.find("rows", "error")


def test_a_lost_job_that_nobody_takes(settings: Settings, open_sessions: OpenSessions, job_id: str) -> None:
    claim(open_sessions(Role.WORKER), seconds=-3 * settings.lease_seconds)

    report = run_doctor(settings)

    assert (report.exit_code, report.errors) == (1, ["rows"])
    assert job_id in report.find("rows", "error")
    assert "medtune reconciler" in report.find("rows", "error")


def test_a_job_that_waits_beside_an_idle_worker(settings: Settings, open_sessions: OpenSessions, job_id: str) -> None:
    with open_sessions(None).begin() as session:
        session.execute(
            text(
                "INSERT INTO workers (id, queue, hostname, pid, num_gpus, started_at) "
                "VALUES ('w', 'train', 'machine', 1, 0, now() - interval '1 hour')"
            )
        )
        session.execute(
            text("UPDATE jobs SET queued_at = now() - interval '1 hour', not_before = now() - interval '1 hour'")
        )

    report = run_doctor(settings)

    assert (report.exit_code, report.errors) == (1, ["rows"])
    assert f"{job_id} waits" in report.find("rows", "error")


@pytest.fixture
def orphan(settings: Settings) -> Iterator[psutil.Process]:
    """A trainer whose worker is dead, in a run folder with copies of rows."""
    run_dir = RunDir(settings.runs_dir / "job_lost" / "attempt-1")
    (run_dir.path / "data").mkdir(parents=True)
    (run_dir.path / OWNER_FILE).write_text("worker_dead")
    get_owners_dir(settings).mkdir(parents=True)
    (get_owners_dir(settings) / "worker_dead").touch()
    process = subprocess.Popen(["sleep", "600"], env={MARKER: str(run_dir.path)}, start_new_session=True)
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def test_an_orphaned_process_is_found_and_ended_when_asked(settings: Settings, orphan: psutil.Process) -> None:
    before = run_doctor(settings)
    assert (before.exit_code, before.errors) == (1, ["processes"])
    assert str(orphan.pid) in before.find("processes", "error")
    assert "--fix" in before.find("processes", "error")
    assert is_alive(orphan)

    fixed = run_doctor(settings, "--fix")

    assert (fixed.exit_code, fixed.errors) == (0, [])
    wait_until(lambda: not is_alive(orphan))
    assert [path.name for path in (settings.runs_dir / "job_lost" / "attempt-1").iterdir()] == []


def test_a_trainer_whose_worker_lives_is_left_alone(settings: Settings, orphan: psutil.Process) -> None:
    lock = try_to_lock(get_owners_dir(settings) / "worker_dead")
    assert lock is not None

    report = run_doctor(settings, "--fix")

    os.close(lock)
    assert (report.exit_code, report.errors) == (0, [])
    assert is_alive(orphan)


def test_embedded_servers_are_found_while_they_run(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with Supervisor(tmp_path / "logs") as supervisor:
        start_postgres(supervisor, tmp_path / "postgres")
        start_redis(supervisor, tmp_path / "redis")
        running = run_doctor(settings)
    stopped = run_doctor(settings)

    assert running.errors == ["migrations"]
    assert running.find("database", "ok").startswith("PostgreSQL")
    assert "messages" in running.find("redis", "ok")
    assert (stopped.exit_code, stopped.errors) == (0, [])
    assert "not running now" in stopped.find("database", "ok")
