"""What is deleted is gone at once for everybody, then from every disk; a record of it stays, whoever dies meanwhile."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from typer.testing import CliRunner

from cli.main import build_app
from cli.serve import Service
from jobs import lifecycle, repository
from jobs.database import Role, Sessions, build_engine, build_sessions, tenant_transaction
from jobs.errors import Conflict, NotFound
from jobs.lifecycle import Ending
from jobs.models import Deletion
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.store import Store
from tests.factories import submit_script, upload_script, wait_for_status, wait_until
from tests.integration.rows import BROKEN, add_dataset, claim, submit
from tests.plain_client import Client
from worker.deleting import delete_objects, delete_work_folders
from worker.machine import HOSTNAME


@pytest.fixture
def rows(service: Service) -> Iterator[Sessions]:
    engine = build_engine(service.settings, Role.WORKER, pool_size=2)
    yield build_sessions(engine)
    engine.dispose()


def wait_for_completion(client: Client, deletion_id: str) -> dict[str, Any]:
    return wait_until(lambda: client.get(f"/deletions/{deletion_id}"), lambda found: found["completed_at"], 60)


def list_remains(service: Service, subject: str) -> list[Path]:
    """Files of a home that have the id in their path. Workers remove others meanwhile."""
    return [
        Path(folder) / name
        for root in (service.settings.home / "store", service.settings.runs_dir)
        for folder, _, names in os.walk(root)
        for name in names
        if subject in folder
    ]


def test_a_deleted_job_is_gone_with_all_its_files_and_a_record_proves_it(
    client: Client, other_tenant: Client, service: Service, rows: Sessions, tmp_path: Path
) -> None:
    secret = "Mrs Ostrowska called"
    job_id = submit_script(client, tmp_path, {"name": secret}, steps=4, save_every=2, log=f"{secret}\nline two\n")
    job = wait_for_status(client, job_id, "succeeded", seconds=90)
    dataset_id = job["dataset"]["id"]
    dataset = client.get(f"/datasets/{dataset_id}")
    assert list_remains(service, job_id)
    row = {"instruction": json.dumps({"steps": 4, "save_every": 2, "log": f"{secret}\nline two\n"}), "response": "yes"}

    assert other_tenant.http.delete(f"/jobs/{job_id}").status_code == 404
    answer = client.http.delete(f"/jobs/{job_id}")

    assert answer.status_code == 200, answer.text
    deletion = answer.json()
    assert (deletion["deleted"], deletion["kind"], deletion["subject"]) == (True, "job", job_id)
    for path in ("", "/logs", "/events", "/metrics", "/adapter", "/checkpoints", "/attempts", "/safety", "/stream"):
        assert client.http.get(f"/jobs/{job_id}{path}").status_code == 404 or not read_data(client, job_id, path), path
    assert client.http.delete(f"/jobs/{job_id}").status_code == 404
    done = wait_for_completion(client, deletion["id"])
    assert list_remains(service, job_id) == []
    record = done["record"]
    assert record["adapter"] == {
        "state": "candidate",
        "sha256": job["adapter"]["sha256"],
        "bytes": job["adapter"]["bytes"],
    }
    assert (record["dataset"]["id"], record["dataset"]["sha256"]) == (dataset_id, dataset["sha256"])
    counted = record["deleted_rows"]
    assert counted["log_lines"] >= 2
    assert counted["attempts"] == 1
    assert min(counted["events"], counted["metrics"], counted["log_chunks"]) > 0
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    assert done["record_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert job["adapter"]["sha256"] in [file["sha256"] for file in done["files"]]
    assert [(one["attempt"], one["host"]) for one in done["work_folders"]] == [(1, HOSTNAME)]
    assert secret not in json.dumps(done)
    assert client.get("/deletions", subject=job_id)["data"] == [done]
    assert other_tenant.get("/deletions")["data"] == []
    assert other_tenant.http.get(f"/deletions/{done['id']}").status_code == 404
    entries = [e for page in client.follow("/audit") for e in page if e["object_id"] == job_id]
    told = {entry["action"]: entry["data"] for entry in entries if entry["result"] == "ok"}
    assert told["delete_job"] == {"deletion": done["id"], "record_sha256": done["record_sha256"]}
    assert told["complete_deletion"]["record_sha256"] == done["record_sha256"]
    (found,) = client.post("/lineage/rows", {"row": row})["jobs"]
    assert (found["id"], found["adapter_sha256"]) == (job_id, job["adapter"]["sha256"])
    assert found["deleted_at"] is not None
    with rows() as session:
        for table in ("events", "metrics", "log_chunks", "attempts", "checkpoints", "adapters", "safety_rounds"):
            assert session.scalar(text(f"SELECT count(*) FROM {table} WHERE job_id = '{job_id}'")) == 0, table

    gone = client.delete(f"/datasets/{dataset_id}")  # No job names it any more.
    assert wait_for_completion(client, gone["id"])["record"]["sha256"] == dataset["sha256"]
    assert list_remains(service, dataset_id) == []


def read_data(client: Client, job_id: str, path: str) -> Any:
    return client.get(f"/jobs/{job_id}{path}")["data"]


def test_a_released_adapters_job_an_unfinished_one_and_what_another_goes_on_from_stay(
    client: Client, colleague: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, {"safety": {"on_violation": "record"}}, checks=True)
    wait_for_status(client, job_id, "succeeded", seconds=90)
    heir = submit_script(client, tmp_path, {"init_from": {"job": job_id}}, step_seconds=30)

    refused = client.http.delete(f"/jobs/{job_id}")
    unfinished = client.http.delete(f"/jobs/{heir}")

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_in_use")
    assert (unfinished.status_code, unfinished.json()["error"]["code"]) == (409, "job_is_not_final")
    client.post(f"/jobs/{heir}/cancel")
    wait_for_status(client, heir, "cancelled", seconds=90)
    decision = {"reviewer": "Ann Roe", "reason": "It was looked at, and it is fine."}
    for step in ("approve", "release"):
        client.post(f"/adapters/{job_id}/{step}", decision)
    refused = client.http.delete(f"/jobs/{job_id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_is_released")
    assert "reject" in refused.json()["error"]["details"]["remedy"]
    assert client.get(f"/jobs/{job_id}")["adapter"]["state"] == "released"


def test_of_two_deletions_at_once_one_is_done_and_the_other_finds_nothing(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=1)
    wait_for_status(client, job_id, "succeeded", seconds=90)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(client.http.delete(f"/jobs/{job_id}").status_code))
        for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(codes) == [200, 404, 404, 404]
    assert len(client.get("/deletions", subject=job_id)["data"]) == 1


def test_the_command_asks_before_it_deletes(
    client: Client, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_id = upload_script(client, tmp_path)
    monkeypatch.setenv("MEDTUNE_PUBLIC_URL", service.url)
    monkeypatch.setenv("MEDTUNE_API_KEY", service.key)

    def run(*arguments: str, answer: str | None = None) -> Any:
        return CliRunner().invoke(build_app("delete"), ["delete", *arguments], input=answer)

    refused = run(dataset_id, answer="n\n")
    assert refused.exit_code == 1
    assert client.get(f"/datasets/{dataset_id}")["status"] == "ready"
    deleted = run(dataset_id, "--yes")
    assert deleted.exit_code == 0, deleted.output
    assert client.get(f"/deletions/{deleted.output.strip()}")["subject"] == dataset_id
    assert client.http.get(f"/datasets/{dataset_id}").status_code == 404
    assert run("nothing", "--yes").exit_code == 1


# --- Without a service: a worker that dies -----------------------------------------------------------------------

KILLED = """
import os, signal, sys
from jobs.database import Role, build_engine, build_sessions
from jobs.settings import Settings
from jobs.store import Store
from worker.deleting import delete_objects

class Dying(Store):
    def sweep(self, folder, keep=None):
        self._filesystem.rm(next(iter(self._filesystem.find(self._path(folder)))))  # One of them is gone.
        os.kill(os.getpid(), signal.SIGKILL)

settings = Settings()
delete_objects(build_sessions(build_engine(settings, Role.WORKER)), Dying(settings.store_location))
"""


def end(worker: Sessions) -> str:
    """A job that failed."""
    job, lease = claim(worker)
    with worker.begin() as session:
        lifecycle.fail(session, lease, Ending(BROKEN))
    return job.id


def delete_marked(api: Sessions, identity: Identity, job_id: str) -> Deletion:
    with tenant_transaction(api, identity.tenant_id) as session:
        return lifecycle.delete_job(session, identity, job_id)


def test_a_worker_that_is_killed_amid_the_files_leaves_the_rest_to_the_next(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    submit(api, identity, settings, add_dataset(api, identity))
    job_id = end(worker)
    store = Store(settings.store_location)
    keys = [f"adapters/{job_id}/attempt-1.tar.gz", f"adapters/{job_id}/attempt-2.tar.gz", f"checkpoints/{job_id}/x.tar"]
    for key in keys:
        with store.writing(key) as file:
            file.write(b"weights")
    deletion = delete_marked(api, identity, job_id)
    environment = {**os.environ, "MEDTUNE_HOME": str(settings.home), "MEDTUNE_DATABASE_URL": url_of(settings)}

    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)

    assert killed.returncode == -signal.SIGKILL
    with worker() as session:
        assert repository.count_waiting_datasets(session, 1) == 1  # So a worker is rung for.
        assert repository.get_deletion(session, deletion.id).files_deleted_at is None
    assert sum(map(store.exists, keys)) == 2
    delete_objects(worker, store)
    assert not any(map(store.exists, keys))
    with worker() as session:
        found = repository.get_deletion(session, deletion.id)
        assert [file["key"] for file in found.files] == keys
        assert repository.count_waiting_datasets(session, 1) == 0
        assert found.files_deleted_at is not None
        assert found.completed_at is None  # The machine `host` has not said so yet.


def url_of(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


def test_a_work_folder_goes_when_nobody_works_in_it_and_only_its_machine_can_tell(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    submit(api, identity, settings, add_dataset(api, identity))
    job_id = end(worker)
    deletion = delete_marked(api, identity, job_id)
    delete_objects(worker, Store(settings.store_location))

    delete_work_folders(worker, settings)
    with worker() as session:  # Nothing is here, and this is not the machine that it ran on.
        assert repository.get_deletion(session, deletion.id).completed_at is None
    folder = settings.runs_dir / job_id / "attempt-1"
    (folder / "checkpoints").mkdir(parents=True)
    delete_work_folders(worker, settings)

    assert not folder.parent.exists()
    with worker() as session:
        found = repository.get_deletion(session, deletion.id)
        assert found.completed_at is not None
        assert found.work_folders[0]["deleted_at"] is not None


def test_nobody_changes_or_removes_a_record_and_nothing_goes_without_one(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    submit(api, identity, settings, add_dataset(api, identity))
    job_id = end(worker)
    with pytest.raises(IntegrityError, match="cannot be deleted"), tenant_transaction(api, "a") as session:
        session.execute(text(f"SELECT medtune_delete_job('{job_id}')"))
    with pytest.raises(NotFound), tenant_transaction(api, "b") as session:
        lifecycle.delete_job(session, Identity("key", "b", is_admin=True), job_id)
    delete_marked(api, identity, job_id)

    for sessions, statement, words in (
        (worker, "DELETE FROM deletions", "permission denied"),
        (worker, "UPDATE deletions SET record = '{}'", "permission denied"),
        (api, "UPDATE deletions SET completed_at = now()", "permission denied"),
    ):
        with pytest.raises(ProgrammingError, match=words), tenant_transaction(sessions, "a") as session:
            session.execute(text(statement))


def test_what_goes_on_from_a_deleted_job_cannot_be_released_by_what_nobody_can_check(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    dataset_id = add_dataset(api, identity)
    submit(api, identity, settings, dataset_id)
    ancestor = end(worker)
    heir = submit(api, identity, settings, dataset_id).id
    with worker.begin() as session:
        spec = repository.get_job(session, heir).spec
        repository.get_job(session, heir).spec = {**spec, "init_from": {"job": ancestor, "checkpoint": None}}
    with pytest.raises(Conflict, match="go on from this"):
        delete_marked(api, identity, ancestor)
    assert end(worker) == heir

    delete_marked(api, identity, ancestor)

    with tenant_transaction(api, identity.tenant_id) as session:
        blockers = lifecycle.find_blockers(session, repository.get_job(session, heir))
        assert session.scalars(select(Deletion.subject_id)).all() == [ancestor]
    assert "ancestor_deleted" in [blocker["code"] for blocker in blockers]
