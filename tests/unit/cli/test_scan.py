"""`medtune scan` says where identifiers stand and of what class they are, and never repeats them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import build_app
from trainer_core.data.phi.scanner import RULE_SET

ROWS = [
    {"instruction": "What helps against a cough?", "response": "Honey."},
    {"instruction": "Write to jane.roe@ward.local", "response": "Call (617) 555-0142."},
]


def scan(path: Path, *options: str) -> Result:
    return CliRunner().invoke(build_app("scan"), ["scan", str(path), *options])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_with_identifiers_exits_with_1_and_lists_places_only(tmp_path: Path) -> None:
    result = scan(write(tmp_path / "rows.jsonl", ROWS), "--json")

    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert report["rows"] == 2
    assert report["summary"] == {"email": 1, "phone": 1}
    assert report["findings"][0] == {
        "row": 2, "field": "instruction", "start": 9, "end": 28, "class": "email", "rule": "email.form",
    }  # fmt: skip
    assert "roe" not in result.output
    assert "0142" not in result.output


def test_a_clean_file_exits_with_0_and_promises_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS[:1])

    assert json.loads(scan(path, "--json").stdout)["findings"] == []
    result = scan(path)
    assert result.exit_code == 0
    assert f"no identifier found by rule set v{RULE_SET}" in result.stdout
    assert "de-identified" not in result.output


def test_people_read_a_table_of_classes(tmp_path: Path) -> None:
    result = scan(write(tmp_path / "rows.jsonl", ROWS))

    assert result.exit_code == 1
    assert "email" in result.stdout
    assert "2 findings" in result.stdout


def test_system_prompts_and_unused_keys_are_scanned_too(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "MRN: 00481516"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    path = write(tmp_path / "rows.jsonl", [{"messages": messages, "note": "SSN 219-09-9999"}])

    fields = [finding["field"] for finding in json.loads(scan(path, "--json").stdout)["findings"]]

    assert fields == ["messages[0].content", "note"]


def test_csv_is_read_like_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction,response\nWrite to jane@ward.local,Yes\n", encoding="utf-8")

    assert json.loads(scan(path, "--json").stdout)["findings"][0]["row"] == 2


@pytest.mark.parametrize("content", ["{not json\n", "", "%PDF-1.7"])
def test_what_cannot_be_read_exits_with_2(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")

    assert scan(path, "--json").exit_code == 2
    assert "no identifier found" not in scan(path).output


def test_a_file_that_is_not_there_exits_with_2(tmp_path: Path) -> None:
    result = scan(tmp_path / "none.jsonl")

    assert result.exit_code == 2
    assert "none.jsonl" in result.output


def test_patterns_of_a_site_add_classes(tmp_path: Path) -> None:
    patterns = tmp_path / "patterns.json"
    patterns.write_text(json.dumps({"patterns": [{"name": "bed", "class": "bed", "regex": "B-\\d{2}"}]}))
    path = write(tmp_path / "rows.jsonl", [{"instruction": "Who lies in B-17?", "response": "Nobody."}])

    result = scan(path, "--json", "--patterns", str(patterns))

    assert json.loads(result.stdout)["findings"][0]["rule"] == "site.bed"


def test_a_bad_file_of_patterns_names_the_field_and_the_remedy(tmp_path: Path) -> None:
    patterns = tmp_path / "patterns.json"
    patterns.write_text(json.dumps({"patterns": [{"name": "bed", "class": "bed", "regex": "("}]}))

    result = scan(write(tmp_path / "rows.jsonl", ROWS), "--patterns", str(patterns))

    assert result.exit_code == 2
    assert "patterns[0].regex" in result.output
