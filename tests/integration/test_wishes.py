"""Pause, resume and retry, the limits of a key, and what attempts leave behind: over HTTP and on the command line."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from cli.serve import MEDTUNE, Service, build_environment
from jobs import lifecycle
from jobs.api_keys import create_key
from jobs.database import Role, build_engine, build_sessions
from jobs.lifecycle import Claimant, Ending, Lease, Retries
from jobs.status import FINAL, Fault
from tests.factories import read_all, submit_script, upload_script, wait_for_status, wait_until
from tests.plain_client import Client

WAITS = {"model": "tiny", "resources": {"gpus": 8}, "priority": 100}
"""A job that no worker of the service can take, and that is the next for one that could."""
RETRIES = Retries(max_infra_restarts=5, max_no_progress_restarts=3, backoff_seconds=3600)
ENDING = Ending({"code": "worker_stopped", "message": "its worker shut down"}, Fault.NONE, 143)
FAULT = Ending({"code": "worker_lost", "message": "its worker is gone"}, Fault.INFRASTRUCTURE)

Submit = Callable[..., str]


@pytest.fixture(scope="module")
def dataset_id(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    client = Client(service.url, service.key)
    try:
        return upload_script(client, tmp_path_factory.mktemp("rows"))
    finally:
        client.close()


@pytest.fixture
def submit(client: Client, dataset_id: str) -> Iterator[Submit]:
    """Queues jobs that wait until the test ends."""
    made: list[str] = []

    def submit(**changes: Any) -> str:
        made.append(client.post("/jobs", {**WAITS, "dataset": {"id": dataset_id}, **changes})["id"])
        return made[-1]

    yield submit
    for job_id in made:
        if client.get(f"/jobs/{job_id}")["status"] not in FINAL:
            client.post(f"/jobs/{job_id}/cancel")


@pytest.fixture
def key_of(service: Service) -> Iterator[Callable[..., Client]]:
    """Clients with keys of their own, with limits."""
    clients: list[Client] = []

    def make(max_running: int | None = None, max_queued: int | None = None) -> Client:
        secret_key = service.settings.load_secret_key()
        with open_session(service, Role.API) as session:
            _, value = create_key(
                session, secret_key, name="x", is_admin=True, max_running=max_running, max_queued=max_queued
            )
        clients.append(Client(service.url, value))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


# --- Pause and resume -------------------------------------------------------------------------------------------------


def test_a_waiting_job_is_paused_at_once_and_waits_again_when_resumed(client: Client, submit: Submit) -> None:
    job_id = submit()

    paused = client.http.post(f"/jobs/{job_id}/pause")
    again = client.http.post(f"/jobs/{job_id}/pause")
    resumed = client.http.post(f"/jobs/{job_id}/resume")

    assert (paused.status_code, paused.json()["status"], paused.json()["queue"]) == (202, "paused", None)
    assert (again.status_code, again.json()["status"]) == (202, "paused")
    assert (resumed.status_code, resumed.json()["status"]) == (200, "queued")
    assert resumed.json()["queue"]["position"] == 1
    assert list_statuses(client, job_id) == ["queued", "paused", "queued"]


def test_a_paused_job_can_be_cancelled(client: Client, submit: Submit) -> None:
    job_id = submit()
    client.post(f"/jobs/{job_id}/pause")

    assert client.post(f"/jobs/{job_id}/cancel")["status"] == "cancelled"


def test_an_owned_job_is_pausing_until_its_worker_lets_go(client: Client, service: Service, submit: Submit) -> None:
    job_id = submit()
    lease = claim(service, job_id)

    pausing = client.post(f"/jobs/{job_id}/pause")
    refusal = refuse(client, f"/jobs/{job_id}/resume", 409)
    with open_session(service, Role.WORKER) as session:
        lifecycle.give_back(session, lease, ENDING, RETRIES)

    assert pausing["status"] == "pausing"
    assert refusal["code"] == "job_is_pausing"
    assert client.get(f"/jobs/{job_id}")["status"] == "paused"
    assert client.post(f"/jobs/{job_id}/resume")["status"] == "queued"


def test_a_running_job_saves_when_it_is_paused_and_goes_on_from_there(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=40, step_seconds=0.1)
    wait_until(lambda: client.get(f"/jobs/{job_id}")["progress"], lambda progress: progress and progress["step"] >= 3)
    client.post(f"/jobs/{job_id}/pause")
    paused = wait_for_status(client, job_id, "paused")
    [checkpoint] = client.get(f"/jobs/{job_id}/checkpoints")["data"]

    client.post(f"/jobs/{job_id}/resume")
    job = wait_for_status(client, job_id, *FINAL)

    assert job["status"] == "succeeded", job["reason"]
    assert paused["restarts"] == job["restarts"] == {"infrastructure": 0, "no_progress": 0}
    second, first = client.get(f"/jobs/{job_id}/attempts")["data"]
    assert (first["outcome"], first["fault"], first["reason"]["code"]) == ("paused", "none", "paused")
    assert first["last_step"] == checkpoint["step"] == second["resumed_from_step"]
    assert (second["outcome"], second["fault"], second["exit_code"], second["last_step"]) == ("succeeded", None, 0, 40)
    statuses = list_statuses(client, job_id)
    assert statuses == [
        "queued",
        "starting",
        "running",
        "pausing",
        "paused",
        "queued",
        "starting",
        "running",
        "succeeded",
    ]


@pytest.mark.parametrize(
    ("before", "wish", "code"),
    [
        ("cancel", "pause", "job_is_final"),
        ("cancel", "resume", "job_is_final"),
        (None, "resume", "job_is_not_paused"),
        (None, "retry", "job_is_not_final"),
        ("pause", "retry", "job_is_not_final"),
    ],
)
def test_a_wish_that_the_status_does_not_allow_is_refused(
    client: Client, submit: Submit, before: str | None, wish: str, code: str
) -> None:
    job_id = submit()
    if before is not None:
        client.post(f"/jobs/{job_id}/{before}")

    error = refuse(client, f"/jobs/{job_id}/{wish}", 409)

    assert (error["code"], error["type"]) == (code, "conflict_error")


def test_a_job_that_is_being_cancelled_cannot_be_paused(client: Client, service: Service, submit: Submit) -> None:
    job_id = submit()
    lease = claim(service, job_id)
    client.post(f"/jobs/{job_id}/cancel")

    error = refuse(client, f"/jobs/{job_id}/pause", 409)

    assert error["code"] == "job_is_stopping"
    with open_session(service, Role.WORKER) as session:
        lifecycle.cancel(session, lease, Ending())


# --- Retry ------------------------------------------------------------------------------------------------------------


def test_a_retry_is_a_new_job_with_the_changes(client: Client, submit: Submit) -> None:
    wanted = {"max_steps": 7, "learning_rate": 1e-3, "lora": {"r": 4, "alpha": 8}}
    parent = submit(name="first", training=wanted, metadata={"team": "a", "round": "1"})
    old = client.post(f"/jobs/{parent}/cancel")

    response = client.http.post(
        f"/jobs/{parent}/retry",
        json={"training": {"max_steps": None, "lora": {"r": 16}}, "metadata": {"round": "2"}},
    )

    new = response.json()
    assert response.status_code == 201
    assert (new["parent"], new["status"], new["attempt"], new["name"]) == (parent, "queued", 0, "first")
    assert new["training"] == old["training"] | {"max_steps": None, "lora": old["training"]["lora"] | {"r": 16}}
    assert new["metadata"] == {"team": "a", "round": "2"}
    assert client.get(f"/jobs/{parent}") == old
    client.post(f"/jobs/{new['id']}/cancel")


def test_a_retry_needs_no_body(client: Client, submit: Submit) -> None:
    parent = submit()
    old = client.post(f"/jobs/{parent}/cancel")

    new = client.post(f"/jobs/{parent}/retry")

    assert {name: new[name] for name in ("model", "dataset", "training", "resources")} == {
        name: old[name] for name in ("model", "dataset", "training", "resources")
    }
    client.post(f"/jobs/{new['id']}/cancel")


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"training": {"micro_batch": 1}}, "training.micro_batch", "unknown_field"),
        ({"training": {"lora": {"r": 0}}}, "training.lora.r", "invalid_field"),
        ({"dataset": None}, "dataset", "invalid_field"),
        ({"model": "unknown"}, "model", "model_not_found"),
        ([], "body", "invalid_field"),
    ],
)
def test_wrong_changes_are_refused_by_name(client: Client, submit: Submit, changes: Any, param: str, code: str) -> None:
    parent = submit()
    client.post(f"/jobs/{parent}/cancel")
    before = client.get("/jobs")["data"]

    error = refuse(client, f"/jobs/{parent}/retry", 422, changes)

    assert (error["param"], error["code"]) == (param, code)
    assert client.get("/jobs")["data"] == before


# --- Limits and what a job waits for ----------------------------------------------------------------------------------


def test_a_key_queues_as_many_jobs_as_it_may(
    service: Service, dataset_id: str, key_of: Callable[..., Client], client: Client
) -> None:
    limited = key_of(max_queued=1)
    body = {**WAITS, "dataset": {"id": dataset_id}}
    headers = {"Idempotency-Key": f"limit-{dataset_id}"}
    first = limited.http.post("/jobs", json=body, headers=headers).json()

    refusal = limited.http.post("/jobs", json=body)
    replay = limited.http.post("/jobs", json=body, headers=headers)

    error = refusal.json()["error"]
    assert (refusal.status_code, error["code"], error["type"]) == (429, "queue_limit_reached", "rate_limit_error")
    assert int(refusal.headers["Retry-After"]) > 0
    assert (replay.status_code, replay.json()["id"]) == (201, first["id"])
    limited.post(f"/jobs/{first['id']}/cancel")
    second = limited.post(f"/jobs/{first['id']}/retry")
    assert refuse(limited, f"/jobs/{first['id']}/retry", 429)["code"] == "queue_limit_reached"
    client.post(f"/jobs/{second['id']}/cancel")


def test_a_job_waits_while_its_key_may_run_no_more(dataset_id: str, key_of: Callable[..., Client]) -> None:
    limited = key_of(max_running=0)
    job = limited.post("/jobs", {"model": "tiny", "dataset": {"id": dataset_id}})

    queue = limited.get(f"/jobs/{job['id']}")["queue"]

    assert queue["reason"] == "its key may run 0 jobs at once, and runs 0"
    limited.post(f"/jobs/{job['id']}/cancel")


def test_a_job_says_when_it_is_tried_again_and_how_often_it_was(
    client: Client, service: Service, submit: Submit
) -> None:
    job_id = submit()
    with open_session(service, Role.WORKER) as session:
        lifecycle.give_back(session, claim(service, job_id), FAULT, RETRIES)

    job = client.get(f"/jobs/{job_id}")
    [listed] = [item for item in client.get("/jobs")["data"] if item["id"] == job_id]

    assert job["queue"]["reason"].startswith("waits until 20")
    assert listed["queue"] == {"position": None, "reason": job["queue"]["reason"]}
    assert job["restarts"] == {"infrastructure": 1, "no_progress": 0}
    assert job["reason"]["code"] == "worker_lost"


def test_a_list_does_not_claim_what_it_did_not_look_at(client: Client, submit: Submit) -> None:
    job_id = submit()

    [listed] = [item for item in client.get("/jobs")["data"] if item["id"] == job_id]

    assert listed["queue"] == {"position": None, "reason": "waits for a free worker"}


# --- Attempts, checkpoints, workers -----------------------------------------------------------------------------------


def test_every_attempt_tells_how_it_ended(client: Client, service: Service, submit: Submit) -> None:
    job_id = submit()
    assert client.get(f"/jobs/{job_id}/attempts")["data"] == []
    with open_session(service, Role.WORKER) as session:
        lifecycle.give_back(session, claim(service, job_id), ENDING, RETRIES)
    lease = claim(service, job_id)

    newest, first = client.get(f"/jobs/{job_id}/attempts")["data"]

    assert {**first, "started_at": None, "ended_at": None} == {
        "object": "attempt",
        "number": 1,
        "hostname": "gpu-host",
        "started_at": None,
        "ended_at": None,
        "outcome": "queued",
        "fault": "none",
        "exit_code": 143,
        "reason": ENDING.reason,
        "resumed_from_step": None,
        "last_step": None,
    }
    assert first["started_at"] <= first["ended_at"]
    assert (newest["number"], newest["ended_at"], newest["outcome"]) == (2, None, None)
    with open_session(service, Role.WORKER) as session:
        lifecycle.give_back(session, lease, ENDING, RETRIES)


def test_checkpoints_are_listed_newest_first(client: Client, service: Service, submit: Submit) -> None:
    job_id = submit()
    assert client.get(f"/jobs/{job_id}/checkpoints") == {"object": "list", "data": [], "has_more": False}
    lease = claim(service, job_id)
    with open_session(service, Role.WORKER) as session:
        for step in (10, 20):
            stored = {"store_key": f"checkpoints/{step}", "num_bytes": 5, "sha256": "ab" * 32, "metrics": {"loss": 1.5}}
            lifecycle.store_checkpoint(session, lease, {"step": step, **stored})

    newest, oldest = client.get(f"/jobs/{job_id}/checkpoints")["data"]

    assert newest["id"].startswith("ckpt_")
    assert {name: value for name, value in newest.items() if name not in ("id", "created_at")} == {
        "object": "checkpoint",
        "step": 20,
        "attempt": 1,
        "bytes": 5,
        "sha256": "ab" * 32,
        "metrics": {"loss": 1.5},
    }
    assert oldest["step"] == 10
    with open_session(service, Role.WORKER) as session:
        lifecycle.give_back(session, lease, ENDING, RETRIES)


def test_workers_say_what_they_have(client: Client, other_tenant: Client) -> None:
    workers = wait_until(lambda: client.get("/workers")["data"], lambda found: len(found) >= 2)

    assert {worker["queue"] for worker in workers} == {"train", "check"}
    [trainer] = [worker for worker in workers if worker["queue"] == "train"]
    assert (trainer["num_gpus"], trainer["gpu_name"], trainer["problem"]) == (0, None, None)
    assert trainer["hostname"]
    assert trainer["disk_free_bytes"] > 0
    refused = other_tenant.http.get("/workers")  # The machines are the operator's: a job says itself why it waits.
    assert (refused.status_code, refused.json()["error"]["details"]["scope"]) == (403, "admin")
    assert client.http.get("/workers", headers={"Authorization": "Bearer mt_wrong"}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "pause"), ("POST", "resume"), ("POST", "retry"), ("GET", "attempts"), ("GET", "checkpoints")],
)
def test_another_tenants_job_is_not_there(other_tenant: Client, submit: Submit, method: str, path: str) -> None:
    response = other_tenant.http.request(method, f"/jobs/{submit()}/{path}")

    assert (response.status_code, response.json()["error"]["code"]) == (404, "job_not_found")


# --- On the command line ----------------------------------------------------------------------------------------------


def test_a_job_is_paused_resumed_and_retried_on_the_command_line(
    client: Client, service: Service, submit: Submit
) -> None:
    job_id = submit(training={"precision": "fp32"})

    paused = run(service, "pause", job_id)
    resumed = run(service, "resume", job_id)
    client.post(f"/jobs/{job_id}/cancel")
    changes = ["training.micro_batch_size=1", "training.lora.r=4", "training.precision=bf16", 'name="again"']
    retried = run(service, "retry", job_id, *(word for change in changes for word in ("--set", change)))

    assert paused.stdout == f"{job_id} paused\n"
    assert resumed.stdout == f"{job_id} queued, no running worker has 8 GPUs; the largest has 0\n"
    new = client.get(f"/jobs/{retried.stdout.strip()}")
    assert (new["parent"], new["name"]) == (job_id, "again")
    assert (new["training"]["micro_batch_size"], new["training"]["lora"]["r"]) == (1, 4)
    assert new["training"]["precision"] == "bf16"
    client.post(f"/jobs/{new['id']}/cancel")


@pytest.mark.parametrize("change", ["training.max_steps", "=1", "a..b=1", ".=1"])
def test_a_change_that_is_none_is_refused_in_one_line(service: Service, change: str) -> None:
    result = run(service, "retry", "job_missing", "--set", change)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"medtune: --set {change}: write KEY=JSON, such as training.max_steps=100\n"


def test_changes_that_exclude_each_other_are_refused(service: Service) -> None:
    result = run(service, "retry", "job_missing", "--set", "a=1", "--set", "a.b=2")

    assert result.stderr == "medtune: --set a.b=2: a has a value already\n"


def test_a_refused_wish_is_one_line_on_standard_error(service: Service, submit: Submit) -> None:
    result = run(service, "resume", submit())

    assert result.returncode == 1
    assert result.stderr == "medtune: the job is queued; only a paused job can be resumed (job_is_not_paused)\n"


def test_waiting_goes_on_while_a_job_is_paused(
    client: Client, service: Service, submit: Submit, tmp_path: Path
) -> None:
    job_id = submit()
    client.post(f"/jobs/{job_id}/pause")
    shown = tmp_path / "stderr"
    with shown.open("wb") as stderr:
        waiting = subprocess.Popen(
            [*MEDTUNE, "wait", job_id], env=build_client_environment(service) | {"FORCE_COLOR": "1"}, stderr=stderr
        )
        wait_until(lambda: shown.read_text(encoding="utf-8"), lambda text: f"medtune resume {job_id}" in text)
        assert waiting.poll() is None

        client.post(f"/jobs/{job_id}/cancel")

        assert waiting.wait(timeout=30) == 3


def test_workers_are_listed_on_the_command_line(service: Service, client: Client) -> None:
    wait_until(lambda: client.get("/workers")["data"], lambda found: len(found) >= 2)

    result = run(service, "workers")

    assert result.returncode == 0, result.stderr
    assert all(word in result.stdout for word in ("host", "train", "check", "GiB", "worker"))


def test_keys_are_made_with_limits(service: Service) -> None:
    made = run(service, "keys", "create", "two-at-once", "--max-running", "2", "--max-queued", "0")
    listed = run(service, "keys", "list")
    wrong = run(service, "keys", "create", "nobody", "--max-running", "-1")

    key_id = made.stdout.split()[0]
    [line] = [line for line in listed.stdout.splitlines() if line.strip().startswith(key_id)]
    assert line.split("two-at-once")[1].strip() == "at most 2 running, 0 waiting"
    assert "at most" not in next(line for line in listed.stdout.splitlines() if "bootstrap" in line)
    assert wrong.returncode == 2


# --- Steps of the above -----------------------------------------------------------------------------------------------


def refuse(client: Client, path: str, status: int, body: Any = None) -> dict[str, Any]:
    response = client.http.post(path, json=body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def list_statuses(client: Client, job_id: str) -> list[str]:
    return [event["data"]["to"] for event in read_all(client, f"/jobs/{job_id}/events") if event["type"] == "status"]


def claim(service: Service, job_id: str) -> Lease:
    """As a worker with eight GPUs would."""
    claimant = Claimant("test", "gpu-host", lease_seconds=600, host_gpus=8, free_gpus=8)
    engine = build_engine(service.settings, Role.WORKER, pool_size=1)
    claimed = lifecycle.claim_job(build_sessions(engine), claimant)
    engine.dispose()
    assert claimed is not None
    job, lease = claimed
    assert job.id == job_id
    return lease


@contextmanager
def open_session(service: Service, role: Role) -> Iterator[Session]:
    engine = build_engine(service.settings, role, pool_size=1)
    with build_sessions(engine).begin() as session:
        yield session
    engine.dispose()


def run(service: Service, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *words],
        env=build_client_environment(service),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def build_client_environment(service: Service) -> dict[str, str]:
    """Also of the service, for the commands that work on its database."""
    key = {"MEDTUNE_PUBLIC_URL": service.url, "MEDTUNE_API_KEY": service.key, "COLUMNS": "300"}
    return {**os.environ, **build_environment(service.settings), **key}
