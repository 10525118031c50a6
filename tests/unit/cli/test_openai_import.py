"""`medtune import-openai --dry-run`: what is read, what it becomes, and what is not taken."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import build_app
from tests.openai_export import MODEL, build_job, write_export

TABLE = f'[models]\n"{MODEL}" = "tiny"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_export(tmp_path / "export")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.toml"
    path.write_text(TABLE)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app("import-openai"), ["import-openai", *map(str, arguments)])


def list_jobs(*arguments: object) -> dict[str, dict[str, Any]]:
    result = run(*arguments, "--dry-run", "--json")
    return {job["openai_job"]: job for job in json.loads(result.stdout)["jobs"]}


def test_jobs_become_requests_with_their_hyperparameters_names_and_ids(folder: Path, table: Path) -> None:
    jobs = list_jobs(folder, "--table", table)

    assert jobs["ftjob-1"]["request"] == {
        "model": "tiny",
        "name": "heart",
        "metadata": {
            "team": "cardiology",
            "openai_job": "ftjob-1",
            "openai_file": "file-train1",
            "openai_validation_file": "file-val1",
        },
        "training": {"epochs": 4, "global_batch_size": 8, "learning_rate": pytest.approx(3.6e-4), "seed": 7},
    }
    assert jobs["ftjob-1"]["dataset"] == str(folder / "file-train1.jsonl")
    assert jobs["ftjob-1"]["validation"] == str(folder / "held out.jsonl")
    assert jobs["ftjob-2"]["request"]["training"] == {"seed": 42}


def test_a_job_by_preferences_is_refused_and_the_others_go_on(folder: Path, table: Path) -> None:
    result = run(folder, "--table", table, "--dry-run")
    jobs = list_jobs(folder, "--table", table)

    assert result.exit_code == 1
    assert (jobs["ftjob-3"]["status"], jobs["ftjob-3"]["code"]) == ("not taken", "method_not_supported")
    assert [jobs[name]["status"] for name in ("ftjob-1", "ftjob-2")] == ["would be taken"] * 2
    assert "only supervised" in result.stdout


def test_the_table_changes_hyperparameters_and_settings(folder: Path, table: Path) -> None:
    table.write_text(
        TABLE + '[training]\nquantization = "4bit"\nepochs = 9\n'
        '[hyperparameters.learning_rate_multiplier]\nfield = "learning_rate"\ntimes = 1e-4\nauto = 5e-5\n'
    )

    jobs = list_jobs(folder, "--table", table)

    first, second = (jobs[name]["request"]["training"] for name in ("ftjob-1", "ftjob-2"))
    assert (first["quantization"], first["epochs"], first["learning_rate"]) == ("4bit", 4, pytest.approx(1.8e-4))
    assert (second["quantization"], second["epochs"], second["learning_rate"]) == ("4bit", 9, 5e-5)


def test_models_without_a_line_stop_everything_and_are_listed(folder: Path) -> None:
    result = run(folder, "--dry-run")

    assert result.exit_code == 1
    assert f"{MODEL} (2 jobs)" in result.stderr
    assert "--write-table" in result.stderr


def test_the_table_that_is_written_has_the_models_and_todays_rules(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.toml"

    assert run(folder, "--write-table", path).exit_code == 0
    path.write_text(path.read_text().replace(f'"{MODEL}" = ""', f'"{MODEL}" = "tiny"'))
    plain = tmp_path / "plain.toml"
    plain.write_text(TABLE)

    assert list_jobs(folder, "--table", path) == list_jobs(folder, "--table", plain)
    assert "exists" in run(folder, "--write-table", path).stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models", "no TOML"),
        ("[models]\na = 1\n", "models.a"),
        ('[hyperparameters.n_epoch]\nfield = "epochs"\n', "hyperparameters.n_epoch"),
        ('[modles]\na = "b"\n', "modles"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_by_its_place(
    folder: Path, table: Path, text: str, message: str
) -> None:
    table.write_text(text)

    result = run(folder, "--table", table, "--dry-run")

    assert result.exit_code == 1
    assert message in result.stderr
    assert str(table) in result.stderr


def test_rows_that_are_missing_cut_or_ambiguous_are_told_by_job(folder: Path, table: Path) -> None:
    held_out = folder / "held out.jsonl"
    text = held_out.read_text()

    held_out.write_text(text[:-5])
    cut = list_jobs(folder, "--table", table)["ftjob-1"]
    held_out.unlink()
    missing = list_jobs(folder, "--table", table)["ftjob-1"]
    (folder / "file-val1.jsonl").write_text(text)
    (folder / "file-val1").write_text(text)
    ambiguous = list_jobs(folder, "--table", table)["ftjob-1"]

    assert [job["code"] for job in (cut, missing, ambiguous)] == ["file_missing"] * 3
    assert "fetch it again" in cut["reason"]
    assert "file-val1 or held out.jsonl" in missing["reason"]
    assert "several files" in ambiguous["reason"]


def test_a_file_that_names_a_place_outside_the_folder_reaches_nothing(folder: Path, table: Path) -> None:
    (folder.parent / "secret.jsonl").write_text("{}\n")
    job = build_job("ftjob-4", {}, training_file="file-away")
    page = [job, {"object": "file", "id": "file-away", "filename": "../secret.jsonl"}]
    (folder / "away.jsonl").write_text("".join(json.dumps(item) + "\n" for item in page))

    assert list_jobs(folder, "--table", table)["ftjob-4"]["code"] == "file_missing"


def test_what_cannot_be_read_or_carried_out_is_told_and_nothing_else_suffers(folder: Path, table: Path) -> None:
    (folder / "broken.json").write_text('{"object": "fine_tuning.job"')
    (folder / "empty.json").write_text('{"object": "fine_tuning.job", "id": "ftjob-5"}')
    bad = build_job("ftjob-6", {"n_epochs": 0}), build_job("ftjob-7", {"learning_rate_multiplier": 1e9})
    (folder / "bad.jsonl").write_text("".join(json.dumps(job) + "\n" for job in bad))

    result = run(folder, "--table", table, "--dry-run", "--json")
    found = json.loads(result.stdout)
    jobs = {job["openai_job"]: job for job in found["jobs"]}

    assert result.exit_code == 1
    assert [Path(one["place"]).name for one in found["unreadable"]] == ["broken.json", "empty.json"]
    assert jobs["ftjob-6"]["reason"].startswith("hyperparameters.n_epochs")
    assert jobs["ftjob-7"]["reason"].startswith("training.learning_rate")
    assert jobs["ftjob-1"]["status"] == "would be taken"


def test_a_folder_without_jobs_is_an_error(tmp_path: Path) -> None:
    assert "no object of the kind fine_tuning.job" in run(tmp_path, "--dry-run").stderr
