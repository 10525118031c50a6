"""`medtune import-openai` against a service: as docs/openai.md says, and nothing twice."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import build_app
from cli.serve import Service
from tests.openai_export import MODEL, write_export
from tests.plain_client import Client

PAGE = Path(__file__).parents[2] / "docs" / "openai.md"


@pytest.fixture
def folder(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDTUNE_PUBLIC_URL", service.url)
    monkeypatch.setenv("MEDTUNE_API_KEY", service.key)
    monkeypatch.chdir(tmp_path)
    return write_export(tmp_path / "export")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app("import-openai"), ["import-openai", *arguments])
    return result.exit_code, result.stdout


def list_names(client: Client) -> list[str]:
    return sorted(
        dataset["name"] for dataset in client.get("/datasets", limit=1000)["data"] if "file-" in dataset["name"]
    )


def list_jobs(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/jobs", limit=1000, **{"metadata[team]": "cardiology"})["data"]
    return found


def test_the_pages_commands_import_everything_once(folder: Path, client: Client) -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Moving from OpenAI\n")[1].split("\n## ")[0]
    [script] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    commands = [line.split("#")[0].split() for line in script.splitlines() if line.startswith("medtune import-openai")]
    assert len(commands) == 4

    for command in commands:
        code, output = run(*command[2:])
        if "--write-table" in command:
            assert code == 0
            table = Path(command[-1])
            table.write_text(table.read_text().replace(f'"{MODEL}" = ""', f'"{MODEL}" = "tiny"'))
        else:
            assert code == 1  # For the job by preferences.
    jobs = list_jobs(client)
    names = list_names(client)
    again, output = run("export", "--table", "table.toml", "--submit", "--json")

    assert {job["metadata"]["openai_job"] for job in jobs} == {"ftjob-1", "ftjob-2"}
    assert [(job["name"], job["validation"] is None) for job in jobs] == [(None, True), ("heart", False)]
    assert len(names) == 2
    assert (list_names(client), len(list_jobs(client))) == (names, 2)
    found = json.loads(output)["jobs"]
    assert again == 1
    assert sorted(job["status"] for job in found) == ["not taken", "there already", "there already"]
    request = json.loads((folder.parent / "imported-jobs" / "ftjob-1.json").read_text())
    assert request["dataset"]["id"] == next(job for job in jobs if job["name"] == "heart")["dataset"]["id"]


def test_rows_that_were_deleted_meanwhile_are_uploaded_again(folder: Path, client: Client, tmp_path: Path) -> None:
    (tmp_path / "table.toml").write_text(f'[models]\n"{MODEL}" = "tiny"\n')
    for path in folder.glob("*.jsonl"):
        if not path.name.endswith("jobs.jsonl") and path.name != "files.jsonl":
            path.write_text(path.read_text().replace("sound", "noise"))
    first = json.loads(run("export", "--table", "table.toml", "--json")[1])["jobs"]
    datasets = {job["dataset"] for job in first if job["dataset"]}
    for dataset_id in datasets:
        client.wait_for_dataset(dataset_id)
        assert client.http.delete(f"/datasets/{dataset_id}").status_code == 200

    second = json.loads(run("export", "--table", "table.toml", "--json")[1])["jobs"]

    assert datasets
    assert not datasets & {job["dataset"] for job in second}
    assert {job["status"] for job in second if job["dataset"]} == {"written"}
