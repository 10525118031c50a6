"""One job's way through API, queue, worker and a fake trainer, with real processes."""

import json
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cli.serve import Service
from jobs.status import FINAL
from tests.factories import (
    find_stubborn_child,
    find_trainer,
    read_all,
    submit_script,
    upload_script,
    wait_for_status,
    write_rows,
)
from tests.plain_client import ApiError, Client


def test_a_job_runs_to_its_adapter(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, {"name": "first"}, steps=5)

    job = wait_for_status(client, job_id, *FINAL)

    assert job["status"] == "succeeded", job["reason"]
    assert job["attempt"] == 1
    assert job["progress"]["step"] == job["progress"]["max_steps"] == 5
    assert job["progress"]["percent"] == 100
    assert job["metrics"]["loss"] == pytest.approx(3 / 5)
    assert job["verification"]["ok"] is True
    assert [m["step"] for m in read_all(client, f"/jobs/{job_id}/metrics")] == [1, 2, 3, 4, 5]
    log = "".join(chunk["text"] for chunk in read_all(client, f"/jobs/{job_id}/logs"))
    assert log.splitlines() == [f"step {n}/5" for n in range(1, 6)]
    statuses = [e["data"]["to"] for e in read_all(client, f"/jobs/{job_id}/events") if e["type"] == "status"]
    assert statuses == ["queued", "starting", "running", "succeeded"]


def test_the_adapter_comes_as_an_archive(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path)
    job = wait_for_status(client, job_id, *FINAL)
    archive = tmp_path / "adapter.tar.gz"

    client.download_adapter(job_id, archive)

    assert archive.stat().st_size == job["adapter"]["bytes"]
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert names == [
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/base_model.json",
        "adapter/bom.cdx.json",
        "adapter/chat_template.jinja",
        "adapter/environment.json",
        "adapter/manifest.json",
        "adapter/signature.sig",
        "adapter/tokenizer_config.json",
        "adapter/verification.json",
    ]


def test_the_copies_of_the_rows_are_deleted_after_the_run(client: Client, service: Service, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path)
    wait_for_status(client, job_id, "succeeded")

    run_dir = service.settings.runs_dir / job_id / "attempt-1"

    assert (run_dir / "train.log").exists()
    assert not (run_dir / "data").exists()


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ({"exit_code": 3}, "trainer_died", "exit code 3"),
        ({"error_code": "loss_not_finite"}, "loss_not_finite", "it went wrong"),
        ({"verify_fails": True}, "artifact_invalid", "changes nothing"),
    ],
)
def test_a_dying_trainer_fails_the_job_with_a_reason_and_its_last_lines(
    client: Client, tmp_path: Path, script: dict[str, Any], code: str, words: str
) -> None:
    job_id = submit_script(client, tmp_path, steps=4, **script)

    job = wait_for_status(client, job_id, *FINAL)

    assert job["status"] == "failed"
    assert job["reason"]["code"] == code
    assert words in job["reason"]["message"]
    assert "step 2/4" in job["reason"]["log_tail"]
    assert job["adapter"] is None
    with pytest.raises(ApiError, match="only a succeeded job has an adapter"):
        client.download_adapter(job_id, tmp_path / "none")


def test_a_trainer_killed_from_outside_is_started_again(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=4, kill_signal=int(signal.SIGKILL), bad_attempts=2)

    job = wait_for_status(client, job_id, *FINAL)

    assert (job["status"], job["attempt"]) == ("succeeded", 3)
    waits = [e for e in read_all(client, f"/jobs/{job_id}/events") if e["data"].get("to") == "queued"][1:]
    assert [event["data"]["fault"] for event in waits] == ["infrastructure"] * 2
    assert "SIGKILL" in waits[0]["message"]


def test_a_trainer_that_crashes_without_progress_is_given_up(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=4, kill_signal=int(signal.SIGSEGV))

    job = wait_for_status(client, job_id, *FINAL)

    assert (job["status"], job["attempt"]) == ("failed", 4)
    assert (job["reason"]["code"], job["reason"]["last_code"]) == ("no_progress", "trainer_crashed")
    assert "SIGSEGV" in job["reason"]["message"]
    assert "step 2/4" in job["reason"]["log_tail"]


def test_a_queued_job_is_cancelled_at_once(client: Client, tmp_path: Path) -> None:
    running = submit_script(client, tmp_path, steps=1000, step_seconds=0.05)
    wait_for_status(client, running, "running")
    waiting = submit_script(client, tmp_path)

    assert client.get(f"/jobs/{waiting}")["queue"] == {"position": 1, "reason": "waits for a free worker"}
    assert client.post(f"/jobs/{waiting}/cancel")["status"] == "cancelled"

    client.post(f"/jobs/{running}/cancel")
    wait_for_status(client, running, "cancelled")


def test_a_running_job_is_cancelled_with_everything_it_started(
    client: Client, service: Service, tmp_path: Path
) -> None:
    """Also what ignores SIGTERM in a session of its own, where a process group's signal does not reach."""
    job_id = submit_script(client, tmp_path, steps=1000, step_seconds=0.05, ignore_term=True, spawn_setsid=True)
    wait_for_status(client, job_id, "running")
    run_dir = service.settings.runs_dir / job_id / "attempt-1"
    child, trainer = find_stubborn_child(run_dir), find_trainer(run_dir)

    answer = client.post(f"/jobs/{job_id}/cancel")
    job = wait_for_status(client, job_id, *FINAL)

    assert answer["cancel_requested_at"] is not None
    assert (job["status"], job["reason"]["code"]) == ("cancelled", "cancelled")
    assert not child.is_running()
    assert not trainer.is_running()
    statuses = [e["data"]["to"] for e in read_all(client, f"/jobs/{job_id}/events") if e["type"] == "status"]
    assert statuses[-2:] == ["stopping", "cancelled"]


def test_what_a_finished_trainer_left_running_is_ended(client: Client, service: Service, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=30, step_seconds=0.05, spawn_setsid=True)
    child = find_stubborn_child(service.settings.runs_dir / job_id / "attempt-1")

    wait_for_status(client, job_id, "succeeded")

    assert not child.is_running()


def test_a_final_status_never_changes(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path)
    wait_for_status(client, job_id, "succeeded")

    with pytest.raises(ApiError) as refusal:
        client.post(f"/jobs/{job_id}/cancel")

    assert refusal.value.code == "job_is_final"


def test_a_log_of_any_bytes_is_stored_in_order(client: Client, tmp_path: Path) -> None:
    noise = b"nul \0 here\nlatin1 \xe9\n10%\r50%\r100%\n" + "".join(f"line {n}\n" for n in range(20_000)).encode()
    job_id = submit_script(client, tmp_path, log_hex=noise.hex(), steps=1)
    wait_for_status(client, job_id, "succeeded")

    chunks = read_all(client, f"/jobs/{job_id}/logs")
    lines = "".join(chunk["text"] for chunk in chunks).splitlines()

    assert lines[:3] == ["nul  here", "latin1 �", "100%"]
    assert lines[3:-1] == [f"line {n}" for n in range(20_000)]
    assert [chunk["seq"] for chunk in chunks] == list(range(1, len(chunks) + 1))
    assert max(len(chunk["text"]) for chunk in chunks) <= 64 * 1024
    assert sum(chunk["lines"] for chunk in chunks) == len(lines)


def test_a_job_waits_for_its_datasets_check_and_fails_with_it(client: Client, tmp_path: Path) -> None:
    """The check takes longer than the POST: the job is accepted as validating."""
    rows = [{"instruction": "x" * 500, "response": "y"}] * 4000 + [{"instruction": "no answer"}]
    dataset = client.upload(write_rows(tmp_path / "rows.jsonl", rows))
    job = client.post("/jobs", {"model": "tiny", "dataset": {"id": dataset["id"]}})

    job = wait_for_status(client, job["id"], *FINAL)

    assert job["status"] == "failed"
    assert job["reason"]["code"] == "dataset_rejected"
    with pytest.raises(ApiError) as refusal:
        client.post("/jobs", {"model": "tiny", "dataset": {"id": dataset["id"]}})
    assert refusal.value.code == "dataset_rejected"


def test_the_same_idempotency_key_makes_one_job(client: Client, tmp_path: Path) -> None:
    body = {"model": "tiny", "dataset": {"id": upload_script(client, tmp_path)}}
    headers = {"Idempotency-Key": "once"}

    answers = [client.http.post("/jobs", json=body, headers=headers) for _ in range(3)]
    other = client.http.post("/jobs", json={**body, "name": "another"}, headers=headers)

    assert [answer.status_code for answer in answers] == [201] * 3
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


def test_an_idempotency_key_is_its_tenants_own(client: Client, other_tenant: Client, tmp_path: Path) -> None:
    """Another tenant that happens upon the same key gets a job of its own, and never learns of the first."""
    headers = {"Idempotency-Key": "shared by chance"}
    body = {"model": "tiny", "dataset": {"id": upload_script(client, tmp_path)}}
    their_body = {"model": "tiny", "dataset": {"id": upload_script(other_tenant, tmp_path)}}

    ours = client.http.post("/jobs", json=body, headers=headers)
    same_body = other_tenant.http.post("/jobs", json=body, headers=headers)
    theirs = [other_tenant.http.post("/jobs", json=their_body, headers=headers) for _ in range(2)]
    ours_again = client.http.post("/jobs", json=body, headers=headers)

    assert (same_body.status_code, same_body.json()["error"]["code"]) == (404, "dataset_not_found")
    assert [answer.status_code for answer in (ours, *theirs, ours_again)] == [201] * 4
    assert theirs[0].json()["id"] == theirs[1].json()["id"] != ours.json()["id"] == ours_again.json()["id"]


def test_jobs_are_listed_newest_first_and_found_by_their_labels(client: Client, tmp_path: Path) -> None:
    dataset = upload_script(client, tmp_path)
    label = {"metadata": {"team": "listing"}}
    ids = [client.post("/jobs", {"model": "tiny", "dataset": {"id": dataset}, **label})["id"] for _ in range(3)]

    first = client.get("/jobs", **{"metadata[team]": "listing", "limit": 2})
    second = client.get("/jobs", **{"metadata[team]": "listing", "limit": 2, "after": first["data"][-1]["id"]})

    assert [job["id"] for job in first["data"] + second["data"]] == ids[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert client.get("/jobs", **{"metadata[team]": "nobody"})["data"] == []


def test_another_tenant_sees_nothing(client: Client, other_tenant: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path)
    dataset = client.get(f"/jobs/{job_id}")["dataset"]["id"]
    wait_for_status(client, job_id, "succeeded")

    assert other_tenant.get("/jobs")["data"] == []
    assert other_tenant.get("/datasets")["data"] == []
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/logs", f"/jobs/{job_id}/adapter", f"/datasets/{dataset}"):
        assert other_tenant.http.get(path).status_code == 404
    assert other_tenant.http.post(f"/jobs/{job_id}/cancel").status_code == 404
    assert other_tenant.http.delete(f"/datasets/{dataset}").status_code == 404
    body = {"model": "tiny", "dataset": {"id": dataset}}
    assert other_tenant.http.post("/jobs", json=body).status_code == 404


def test_a_trainer_knows_no_secret(client: Client, service: Service, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=100, step_seconds=0.05, spawn_setsid=True)
    wait_for_status(client, job_id, "running")
    run_dir = service.settings.runs_dir / job_id / "attempt-1"
    trainer = find_trainer(run_dir)

    shown = json.dumps([trainer.environ(), trainer.cmdline()])
    client.post(f"/jobs/{job_id}/cancel")
    wait_for_status(client, job_id, "cancelled")

    assert "MEDTUNE_" not in shown
    assert service.key not in shown
    assert "postgresql://" not in shown
