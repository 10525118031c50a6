"""Identifiers of patients in a dataset: what each policy makes of them, and who answers for them."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import lifecycle
from jobs.database import Sessions
from jobs.errors import LeaseLost
from jobs.models import Dataset
from jobs.repository import Identity
from jobs.status import DatasetStatus, PhiPolicy
from tests.factories import write_rows
from tests.integration.rows import add_dataset
from tests.plain_client import Client
from worker import checks
from worker.checks import CheckInterrupted, CheckLease, check_file

PRIVATE = "Patient: Maria Kowalski, call 617-555-0132"
ROWS = [
    {"instruction": "What is asthma?", "response": "A disease of the airways."},
    {"instruction": PRIVATE, "response": "Maria should rest."},
]
STATEMENT = "These people are made up for teaching, none is real."


def upload(client: Client, folder: Path, rows: list[dict[str, Any]], **fields: str) -> dict[str, Any]:
    return client.wait_for_dataset(client.upload(write_rows(folder / "rows.jsonl", rows), **fields)["id"])


def refuse(client: Client, path: str, body: dict[str, Any]) -> tuple[int, str, str | None]:
    answer = client.http.post(path, json=body)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_identifiers_are_reported_by_place_and_never_by_value(client: Client, tmp_path: Path) -> None:
    dataset = upload(client, tmp_path, ROWS)
    report = client.get(f"/datasets/{dataset['id']}/report")

    assert dataset["status"] == "ready"
    assert dataset["phi"]["classes"] == {"name": 2, "phone": 1}
    assert dataset["phi"]["findings"] == report["phi"]["num_findings"] == 3
    assert dataset["phi"]["release_blocker"]
    for finding in report["phi"]["findings"]:
        text = ROWS[finding["row"] - 1][finding["field"]]
        assert text[finding["start"] : finding["end"]] in ("Maria Kowalski", "617-555-0132", "Maria")
    for told in (dataset, report):
        assert not any(word in json.dumps(told) for word in ("Maria", "Kowalski", "0132"))


def test_a_dataset_without_findings_stands_in_the_way_of_no_release(client: Client, tmp_path: Path) -> None:
    dataset = upload(client, tmp_path, ROWS[:1])

    assert (dataset["status"], dataset["phi"]["findings"], dataset["phi"]["release_blocker"]) == ("ready", 0, None)
    body = {"attested_by": "Ann Roe", "attestation": STATEMENT}
    assert refuse(client, f"/datasets/{dataset['id']}/attest", body) == (409, "nothing_to_attest", None)


def test_by_policy_a_dataset_with_identifiers_is_rejected_and_one_without_is_not(
    client: Client, tmp_path: Path
) -> None:
    rejected = upload(client, tmp_path, ROWS, phi_policy="reject")
    ready = upload(client, tmp_path, ROWS[:1], phi_policy="reject")
    report = client.get(f"/datasets/{rejected['id']}/report")

    assert (rejected["status"], ready["status"]) == ("rejected", "ready")
    assert [finding["code"] for finding in report["findings"]] == ["identifiers_found"]
    assert report["phi"]["rows_with_findings"] == 1
    job = client.http.post("/jobs", json={"model": "tiny", "dataset": {"id": rejected["id"]}})
    assert (job.status_code, job.json()["error"]["code"]) == (422, "dataset_rejected")


def test_nobody_looks_when_a_person_says_in_writing_why(client: Client, tmp_path: Path) -> None:
    dataset = upload(client, tmp_path, ROWS, phi_policy="off", attested_by="Ann Roe", attestation=STATEMENT)

    assert dataset["status"] == "ready"
    assert dataset["phi"]["findings"] is None
    assert dataset["phi"]["attestation"]["name"] == "Ann Roe"
    assert dataset["phi"]["release_blocker"] is None


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"phi_policy": "off"}, "attestation_incomplete", "attested_by"),
        ({"phi_policy": "off", "attested_by": "Ann Roe"}, "attestation_incomplete", "attestation"),
        ({"phi_policy": "off", "attested_by": "Ann", "attestation": "fine"}, "attestation_incomplete", "attestation"),
        (
            {"phi_policy": "off", "attested_by": "\u200b", "attestation": STATEMENT},
            "attestation_incomplete",
            "attested_by",
        ),
        (
            {"phi_policy": "off", "attested_by": "Ann", "attestation": "\u200b" * 40},
            "attestation_incomplete",
            "attestation",
        ),
        ({"phi_policy": "off", "attested_by": "\0", "attestation": STATEMENT}, "attestation_incomplete", "attested_by"),
        ({"phi_policy": "maybe"}, "invalid_field", "phi_policy"),
        ({"attested_by": "Ann Roe"}, "field_without_use", "attested_by"),
        ({"attestation": STATEMENT, "phi_policy": "reject"}, "field_without_use", "attestation"),
    ],
)
def test_a_policy_that_is_incomplete_or_none_is_refused(
    client: Client, tmp_path: Path, fields: dict[str, str], code: str, param: str
) -> None:
    before = client.get("/datasets", limit=1)["data"]

    content = write_rows(tmp_path / "rows.jsonl", ROWS).read_bytes()
    answer = client.http.post("/datasets", files={"file": ("rows.jsonl", content)}, data=fields)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, code, param)
    assert client.get("/datasets", limit=1)["data"] == before


def test_a_named_person_answers_once_for_what_was_found(client: Client, tmp_path: Path) -> None:
    dataset = upload(client, tmp_path, ROWS)
    path, body = f"/datasets/{dataset['id']}/attest", {"attested_by": "Ann Roe", "attestation": STATEMENT}

    assert refuse(client, path, {**body, "attestation": "fine"}) == (422, "attestation_incomplete", "attestation")
    assert refuse(client, path, {**body, "sure": True}) == (422, "unknown_field", "sure")
    attested = client.post(path, body)
    assert refuse(client, path, body) == (409, "already_attested", None)
    assert refuse(client, "/datasets/ds_none/attest", body) == (404, "dataset_not_found", None)

    assert attested["phi"]["attestation"]["statement"] == STATEMENT
    assert attested["phi"]["release_blocker"] is None
    assert client.get(f"/datasets/{dataset['id']}") == attested


def claim(worker: Sessions, dataset_id: str, owner: str, seconds: float) -> None:
    with worker.begin() as session:
        claimed = lifecycle.claim_dataset(session, owner, seconds)
        assert claimed is not None
        assert claimed.id == dataset_id


def get_remaining(worker: Sessions, dataset_id: str) -> float:
    with worker() as session:
        dataset = session.get_one(Dataset, dataset_id)
        assert dataset.lease_expires_at is not None
        return dataset.lease_expires_at.timestamp()


def test_a_check_keeps_its_lease_while_it_goes_on_and_stops_when_it_lost_it(
    api: Sessions, worker: Sessions, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "RENEWALS", 10**9)
    dataset_id = add_dataset(api, identity, DatasetStatus.VALIDATING)
    claim(worker, dataset_id, "one", 0.0)
    lost = CheckLease(worker, dataset_id, "one", 1000.0, lambda: False)
    claim(worker, dataset_id, "two", 0.0)
    kept = CheckLease(worker, dataset_id, "two", 1000.0, lambda: False)
    before = get_remaining(worker, dataset_id)

    kept.keep()

    assert get_remaining(worker, dataset_id) > before + 900
    with pytest.raises(LeaseLost):
        lost.keep()


def test_a_worker_that_must_stop_leaves_the_check_to_another(
    api: Sessions, worker: Sessions, identity: Identity, tmp_path: Path
) -> None:
    dataset_id = add_dataset(api, identity, DatasetStatus.VALIDATING)
    claim(worker, dataset_id, "one", 1000.0)
    lease = CheckLease(worker, dataset_id, "one", 1000.0, lambda: True)

    with pytest.raises(CheckInterrupted):
        check_file(write_rows(tmp_path / "rows.jsonl", ROWS), PhiPolicy.REPORT, [], lease.keep)
    with worker.begin() as session:
        lifecycle.release_datasets(session, "one")

    claim(worker, dataset_id, "two", 1000.0)
