"""A dataset to validate on is checked like one to train on."""

from pathlib import Path
from typing import Any

import pytest

from jobs.ids import new_id
from tests.factories import submit_script, upload_script, wait_for_status, write_rows
from tests.plain_client import Client

PATIENT = {"instruction": "Call Mrs Maria Kowalski at (555) 201-3344.", "response": "yes"}


@pytest.fixture
def ask(client: Client, tmp_path: Path) -> Any:
    """Submits a job that is to be validated on a dataset; the error's status, code and field."""

    def ask(validation: dict[str, Any]) -> tuple[int, str, str]:
        request = {"model": "tiny", "dataset": {"id": upload_script(client, tmp_path)}, "validation": validation}
        answer = client.http.post("/jobs", json=request)
        return answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]

    return ask


def test_one_that_is_rejected_missing_or_another_tenants_is_refused_by_its_field(
    client: Client, other_tenant: Client, ask: Any, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [PATIENT])
    rejected = client.wait_for_dataset(client.upload(file, phi_policy="reject")["id"])

    assert rejected["status"] == "rejected"
    assert ask({"id": rejected["id"]}) == (422, "dataset_rejected", "validation.id")
    assert ask({"id": new_id("ds")}) == (404, "dataset_not_found", "validation.id")
    theirs = upload_script(other_tenant, tmp_path)
    assert ask({"id": theirs}) == (404, "dataset_not_found", "validation.id")
    code = ask({"id": rejected["id"], "fraction": 0.1})
    assert code[0] == 422


def test_a_job_waits_for_its_check_and_fails_when_that_does(client: Client, tmp_path: Path) -> None:
    training = upload_script(client, tmp_path)
    unchecked = client.upload(write_rows(tmp_path / "rows.jsonl", [PATIENT]), phi_policy="reject")["id"]
    request = {"model": "tiny", "dataset": {"id": training}, "validation": {"id": unchecked}}

    answer = client.http.post("/jobs", json=request)

    if answer.status_code == 201:  # Else the check was faster than the job.
        job = wait_for_status(client, answer.json()["id"], "failed", "succeeded")
        assert (job["status"], job["reason"]["code"]) == ("failed", "dataset_rejected")
    else:
        assert answer.json()["error"]["code"] == "dataset_rejected"


def test_identifiers_in_it_close_the_gate_of_the_adapter_and_it_cannot_be_deleted(
    client: Client, tmp_path: Path
) -> None:
    found = client.wait_for_dataset(client.upload(write_rows(tmp_path / "rows.jsonl", [PATIENT]))["id"])
    assert found["phi"]["findings"] > 0

    job_id = submit_script(client, tmp_path, {"validation": {"id": found["id"]}}, checks=True)
    job = wait_for_status(client, job_id, "succeeded", "failed", seconds=90)

    assert job["status"] == "succeeded", job["reason"]
    blockers = {one["code"]: one for one in client.get(f"/adapters/{job_id}")["blockers"]}
    assert blockers["identifiers_in_data"]["dataset"] == found["id"]
    refused = client.http.delete(f"/datasets/{found['id']}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "dataset_in_use")
