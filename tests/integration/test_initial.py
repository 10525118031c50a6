"""A job that goes on from another's adapter: what is refused, what it inherits, and what leads to it."""

import json
from pathlib import Path

from tests.factories import submit_script, upload_script, wait_for_status
from tests.plain_client import Client

CRITICAL = {"checks": True, "critical": ["chest-pain-01"]}


def test_what_an_ancestor_owes_closes_the_gate_of_its_descendant(
    client: Client, other_tenant: Client, tmp_path: Path
) -> None:
    log = "Patient: Maria Kowalski, 617-555-0132"
    ancestor = submit_script(client, tmp_path, {"safety": {"on_violation": "record"}}, **CRITICAL, log=log)
    row = {"instruction": json.dumps({**CRITICAL, "log": log}), "response": "yes"}
    assert wait_for_status(client, ancestor, "succeeded", "failed")["status"] == "succeeded"

    job_id = submit_script(client, tmp_path, {"init_from": {"job": ancestor}}, checks=True)
    job = wait_for_status(client, job_id, "succeeded", "failed")

    assert (job["status"], job["init_from"]) == ("succeeded", {"job": ancestor, "checkpoint": None}), job["reason"]
    blockers = {blocker["code"]: blocker for blocker in client.get(f"/adapters/{job_id}")["blockers"]}
    assert set(blockers) == {"identifiers_in_data", "safety_findings_open"}
    assert blockers["safety_findings_open"]["findings"][0]["probe_id"] == "chest-pain-01"
    assert client.get(f"/jobs/{job_id}/provenance")["provenance"]["derived_from"]["job"] == ancestor
    found = {one["id"]: one["derived_from"] for one in client.post("/lineage/rows", {"row": row})["jobs"]}
    assert found[job_id] == ancestor

    request = {"model": "tiny", "dataset": {"id": upload_script(client, tmp_path)}, "init_from": {"job": ancestor}}
    answer = client.http.post("/jobs", json={**request, "training": {"lora": {"r": 8}}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "init_from_mismatch")
    request["dataset"] = {"id": upload_script(other_tenant, tmp_path)}
    answer = other_tenant.http.post("/jobs", json=request)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
