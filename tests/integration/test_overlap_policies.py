"""Rows that are there twice, or that also judge the model: what each policy of a dataset makes of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.settings import Settings
from jobs.status import OverlapPolicy
from tests.factories import write_rows
from tests.plain_client import Client
from trainer_core.errors import ConfigurationError
from trainer_core.safety.probes import load_probes
from worker.overlap import add_overlap

PROBE = load_probes().probes[-1]
ROWS = [
    {"instruction": "What is asthma?", "response": "A disease of the airways."},
    {"instruction": "what is ASTHMA?", "response": "A disease of the airways."},
    {"instruction": PROBE.question, "response": "Nothing."},
    {"instruction": "What is asthma?", "response": "It makes breathing hard."},
]
COUNTS = {"duplicate_row": 1, "probe_overlap": 1}


def upload(client: Client, folder: Path, rows: list[dict[str, Any]], **fields: str) -> dict[str, Any]:
    return client.wait_for_dataset(client.upload(write_rows(folder / "rows.jsonl", rows), **fields)["id"])


def test_duplicates_and_probes_are_reported_by_place_and_may_be_trained_on(client: Client, tmp_path: Path) -> None:
    dataset = upload(client, tmp_path, ROWS)
    report = client.get(f"/datasets/{dataset['id']}/report")

    assert dataset["status"] == "ready"
    assert dataset["overlap"] == {"policy": "report", "rows": 2, "counts": COUNTS}
    assert report["overlap"]["compared_with"] == {"safety probes": len(load_probes().probes)}
    assert [(f["code"], f["rows"], f["source"], f["source_row"]) for f in report["overlap"]["findings"]] == [
        ("duplicate_row", [2], None, 1),
        ("probe_overlap", [3], PROBE.id, None),
    ]
    assert "asthma" not in json.dumps(report["overlap"]).lower()


def test_by_policy_a_dataset_with_overlap_is_rejected_and_one_without_is_not(client: Client, tmp_path: Path) -> None:
    rejected = upload(client, tmp_path, ROWS, overlap_policy="reject")
    ready = upload(client, tmp_path, [ROWS[0], ROWS[3]], overlap_policy="reject")
    report = client.get(f"/datasets/{rejected['id']}/report")

    assert (rejected["status"], rejected["overlap"]["counts"]) == ("rejected", COUNTS)
    assert (ready["status"], ready["overlap"]) == ("ready", {"policy": "reject", "rows": 0, "counts": {}})
    assert [finding["code"] for finding in report["findings"]] == ["overlap_found"]


def test_nobody_looks_where_the_policy_says_so(client: Client, tmp_path: Path) -> None:
    dataset = upload(client, tmp_path, ROWS, overlap_policy="off")

    assert dataset["status"] == "ready"
    assert dataset["overlap"] == {"policy": "off", "rows": None, "counts": None}
    assert "overlap" not in client.get(f"/datasets/{dataset['id']}/report")


def test_a_policy_that_is_none_is_refused(client: Client, tmp_path: Path) -> None:
    content = write_rows(tmp_path / "rows.jsonl", ROWS).read_bytes()
    answer = client.http.post("/datasets", files={"file": ("rows.jsonl", content)}, data={"overlap_policy": "maybe"})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_field", "overlap_policy")


def test_the_operators_benchmarks_are_compared_with(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "exam.csv").write_text("question,answer\nWhat is asthma?,B\n", encoding="utf-8")
    settings = Settings(home=tmp_path, benchmarks_dir=folder)
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    calls: list[None] = []

    report: dict[str, Any] = {"ok": True}
    add_overlap(report, path, OverlapPolicy.REPORT, settings, lambda: calls.append(None))

    assert report["ok"]
    assert report["overlap"]["counts"] == {**COUNTS, "benchmark_overlap": 3}
    assert report["overlap"]["findings"][0]["source"] == "exam.csv"
    assert len(calls) > len(ROWS) + len(load_probes().probes)
    rejected: dict[str, Any] = {"ok": False}
    add_overlap(rejected, path, OverlapPolicy.REPORT, settings, lambda: None)
    assert rejected == {"ok": False}  # Rows that cannot be used are not compared.


def test_a_benchmark_that_cannot_be_read_is_nobodys_datasets_fault(tmp_path: Path) -> None:
    (tmp_path / "exam.csv").write_bytes(b"question\n\xff\n")
    settings = Settings(home=tmp_path, benchmarks_dir=tmp_path)

    path = write_rows(tmp_path / "rows.jsonl", ROWS)

    with pytest.raises(ConfigurationError, match=r"exam\.csv"):
        add_overlap({"ok": True}, path, OverlapPolicy.REPORT, settings, lambda: None)


@pytest.mark.parametrize(("name", "problem"), [("none", "No such file"), ("empty", "no file to compare with")])
def test_a_worker_does_not_start_without_the_benchmarks_that_it_is_told_of(
    settings: Settings, tmp_path: Path, name: str, problem: str
) -> None:
    (tmp_path / "empty").mkdir()
    secrets = settings.model_dump(context={"reveal_secrets": True})
    told = {f"MEDTUNE_{key.upper()}": secrets[key] for key in ("database_url", "redis_url")}
    environment = {**os.environ, **told, "MEDTUNE_HOME": str(tmp_path), "MEDTUNE_BENCHMARKS_DIR": str(tmp_path / name)}

    command = [sys.executable, "-m", "cli.main", "worker", "--queue", "check"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert problem in result.stderr
    assert "Traceback" not in result.stderr
