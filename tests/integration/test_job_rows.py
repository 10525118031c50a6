"""`GET /jobs/{id}/rows`: how a job's rows look to its model, to their owner alone."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import build_app
from cli.serve import Service
from tests.factories import read_all, submit_script, wait_for_status, wait_until
from tests.plain_client import Client


def test_the_owner_sees_the_first_rows_with_what_is_trained_and_nobody_else_does(
    service: Service, client: Client, other_tenant: Client, tmp_path: Path
) -> None:
    job_id = submit_script(client, tmp_path, steps=2, shows_rows=True)
    wait_for_status(client, job_id, "succeeded", seconds=300)

    rows = client.get(f"/jobs/{job_id}/rows")

    assert (rows["id"], rows["attempt"], rows["train_rows"]) == (job_id, 1, 1)
    [sample] = rows["sample"]
    assert json.loads(sample["runs"][0]["text"])["shows_rows"]
    assert sample["runs"][1] == {"text": "yes", "trained": True}
    assert other_tenant.http.get(f"/jobs/{job_id}/rows").status_code == 404
    reads = [entry for page in client.follow("/audit") for entry in page if entry["action"] == "get_rows"]
    assert [entry["object_id"] for entry in reads if entry["object_id"] == job_id] == [job_id]
    told = json.dumps([read_all(client, f"/jobs/{job_id}/{what}") for what in ("events", "logs", "metrics")])
    assert "shows_rows" not in told
    assert list((service.settings.runs_dir / job_id).rglob("rows.json")) == []


def test_the_command_line_shows_what_is_trained(
    service: Service, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDTUNE_PUBLIC_URL", service.url)
    monkeypatch.setenv("MEDTUNE_API_KEY", service.key)
    job_id = submit_script(client, tmp_path, steps=1, shows_rows=True)
    wait_for_status(client, job_id, "succeeded", seconds=300)

    result = CliRunner().invoke(build_app("rows"), ["rows", job_id])

    assert result.exit_code == 0
    assert "line 1: 5 tokens, 1 trained" in result.stdout
    assert ' trained  "yes"' in result.stdout


def test_rows_that_are_not_prepared_are_a_conflict(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, {"resources": {"gpus": 8}})

    answer = client.http.get(f"/jobs/{job_id}/rows")
    client.post(f"/jobs/{job_id}/cancel")

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "rows_not_prepared")


def test_rows_are_shown_while_the_job_runs(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path, steps=1000, step_seconds=0.2, shows_rows=True)

    wait_until(lambda: client.http.get(f"/jobs/{job_id}/rows").status_code, lambda code: code == 200, 300)
    status = client.get(f"/jobs/{job_id}")["status"]
    client.post(f"/jobs/{job_id}/cancel")
    wait_for_status(client, job_id, "cancelled", seconds=300)

    assert status in ("starting", "running")
