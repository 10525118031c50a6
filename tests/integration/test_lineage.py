"""Which datasets and adapters a row went into, and with what an adapter was made."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from cli.main import build_app
from cli.serve import Service
from jobs.database import Role, build_engine, build_sessions
from jobs.models import AuditEntry, RowShard
from jobs.settings import Settings
from tests.factories import submit_script, wait_for_status, write_rows
from tests.integration.test_data_policies import ROWS, upload
from tests.plain_client import Client
from trainer_core.data.row_hashes import HashedRows, hash_row


@pytest.fixture
def run(service: Service, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`medtune lineage`, where the service's settings and key are."""
    for name, value in service.settings.model_dump(context={"reveal_secrets": True}).items():
        if name in ("home", "database_url", "port"):
            monkeypatch.setenv(f"MEDTUNE_{name.upper()}", str(value))
    monkeypatch.setenv("MEDTUNE_API_KEY", service.key)
    monkeypatch.setattr("cli.operator.get_settings", Settings)

    def run(*arguments: str, text: str | None = None) -> list[dict[str, Any]]:
        result = CliRunner().invoke(build_app("lineage"), ["lineage", *arguments], input=text)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.output.splitlines()]

    return run


def test_a_row_leads_to_the_adapters_that_were_trained_on_it(
    client: Client, other_tenant: Client, tmp_path: Path
) -> None:
    row = {"instruction": json.dumps({"steps": 2, "log": "lineage\n"}), "response": "yes"}
    job_id = submit_script(client, tmp_path, {"validation": {"fraction": 0.5}}, steps=2, log="lineage\n")
    job = wait_for_status(client, job_id, "succeeded")
    dataset = client.get(f"/datasets/{job['dataset']['id']}")

    by_row = client.post("/lineage/rows", {"row": dict(reversed(row.items()))})
    by_hash = client.post("/lineage/rows", {"sha256": hash_row(row).hex()})

    assert by_row == by_hash
    assert by_row["row_sha256"] == hash_row(row).hex()
    assert [(d["id"], d["rows_digest"]) for d in by_row["datasets"]] == [(dataset["id"], dataset["rows_digest"])]
    assert dataset["rows_digest"] == HashedRows([hash_row(row)]).compute_digest()
    (found,) = by_row["jobs"]
    assert (found["id"], found["status"], found["adapter"]) == (job_id, "succeeded", "candidate")
    assert (found["roles"], found["adapter_sha256"]) == ({dataset["id"]: "training"}, job["adapter"]["sha256"])
    assert other_tenant.post("/lineage/rows", {"row": row})["datasets"] == []
    assert client.post("/lineage/rows", {"row": {**row, "response": "no"}})["datasets"] == []


@pytest.mark.parametrize(
    "body", [{}, {"row": {}, "sha256": "0" * 64}, {"sha256": "0"}, {"row": []}, {"row": {}, "file": "x"}]
)
def test_a_question_that_names_no_row_or_two_is_refused(client: Client, body: dict[str, Any]) -> None:
    answer = client.http.post("/lineage/rows", json=body)

    assert answer.status_code == 422
    assert answer.json()["error"]["code"] in ("invalid_field", "unknown_field")


def test_a_question_is_in_the_audit_log_and_does_not_give_the_row_away(client: Client) -> None:
    row_hash = hash_row({"instruction": "who asked for this?", "response": "x"})

    client.post("/lineage/rows", {"sha256": row_hash.hex()})

    entries = [entry for page in client.follow("/audit") for entry in page if entry["action"] == "find_row"]
    assert entries
    assert entries[-1]["object_id"].startswith("row_")
    assert row_hash.hex()[:16] not in json.dumps(entries)


def test_of_a_replaced_dataset_the_operator_finds_rows_as_they_were_uploaded(
    client: Client, service: Service, run: Any, tmp_path: Path
) -> None:
    dataset_id = upload(client, tmp_path, ROWS, phi_policy="replace")["id"]
    clean = {"instruction": "Patient: [PATIENT_1], call [PHONE_1]", "response": "[PATIENT_1] should rest."}
    raw = write_rows(tmp_path / "asked.jsonl", [ROWS[1]])

    (by_clean,) = run("-", text=json.dumps(clean) + "\n")
    (by_raw,) = run(str(raw))
    (by_operator,) = run(str(raw), "--uploaded")

    assert dataset_id in [dataset["id"] for dataset in by_clean["datasets"]]
    assert dataset_id not in [dataset["id"] for dataset in by_raw["datasets"]]
    assert {"id": dataset_id, "tenant": "default", "name": "rows.jsonl"} in by_operator["datasets"]
    engine = build_engine(service.settings, Role.WORKER, pool_size=1)
    with build_sessions(engine)() as session:
        shards = session.scalars(select(RowShard).where(RowShard.dataset_id == dataset_id)).all()
        audited = select(AuditEntry.actor).where(AuditEntry.object_id == dataset_id, AuditEntry.action == "find_row")
        assert session.scalars(audited).all() == ["operator"]
    engine.dispose()
    assert {shard.is_uploaded for shard in shards} == {True, False}
    kept = b"".join(shard.hashes for shard in shards)
    assert hash_row(clean) in kept
    assert hash_row(ROWS[1]) not in kept


def test_an_adapter_says_with_what_it_was_made(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=2)
    job = wait_for_status(client, job_id, "succeeded")
    dataset = client.get(f"/datasets/{job['dataset']['id']}")

    answer = client.get(f"/jobs/{job_id}/provenance")

    made = answer["provenance"]
    assert answer["spec"]["training"] == job["training"]
    assert made["base"]["fingerprint"].startswith("sha256:")
    assert made["environment"]["packages"]["torch"]
    assert len(made["environment"]["code_sha256"]) == 64
    assert made["plan"]["num_processes"] == 1
    (used,) = made["datasets"]
    assert (used["sha256"], used["rows_digest"]) == (dataset["sha256"], dataset["rows_digest"])
