"""`medtune dedup` names rows that are there more than once, or that judge the model, and writes the others."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from cli.main import build_app
from trainer_core.safety.probes import load_probes

PROBE = load_probes().probes[-1]
ROWS = [
    {"instruction": "What is asthma?", "response": "A disease of the airways."},
    {"instruction": "What is gout?", "response": "A disease of the joints."},
    {"instruction": "WHAT IS ASTHMA?", "response": "A disease of the airways."},
    {"instruction": "What is croup?", "response": "A disease of children."},
    {"instruction": PROBE.question, "response": "Lie down."},
    {"instruction": "What is polio?", "response": "A disease that is nearly gone."},
]


def dedup(path: Path, *options: str | Path) -> Result:
    return CliRunner().invoke(build_app("dedup"), ["dedup", str(path), *map(str, options)])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_what_was_found_is_listed_by_place_and_the_rest_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    validation = write(tmp_path / "held_out.jsonl", [ROWS[1]])
    (tmp_path / "benchmarks").mkdir()
    write(tmp_path / "benchmarks" / "b.jsonl", [{"question": "What is croup?"}])
    out = tmp_path / "clean.jsonl"

    options = ("--validation", validation, "--against", tmp_path / "benchmarks", "--json", "--out", out)
    result = dedup(path, *options)

    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [(f["code"], f["rows"], f["source"], f["source_row"]) for f in report["findings"]] == [
        ("validation_overlap", [2], "held_out.jsonl", 1),
        ("duplicate_row", [3], None, 1),
        ("benchmark_overlap", [4], "b.jsonl", 1),
        ("probe_overlap", [5], PROBE.id, None),
    ]
    assert report["compared_with"] == {"safety probes": len(load_probes().probes), "b.jsonl": 1}
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == [ROWS[0], ROWS[5]]
    assert "2 of 6 rows" in result.stderr
    assert "asthma" not in result.output.lower()
    assert dedup(path, *options).exit_code == 2  # A file is there: nothing is overwritten.


def test_people_read_a_table(tmp_path: Path) -> None:
    result = dedup(write(tmp_path / "rows.jsonl", ROWS))

    assert result.exit_code == 1
    assert "6 rows: 1 duplicate_row, 1 probe_overlap" in result.stdout


def test_a_file_without_overlap_exits_with_0_and_is_copied(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS[:2])

    result = dedup(path, "--out", tmp_path / "clean.jsonl")

    assert (result.exit_code, "nothing found" in result.stdout) == (0, True)
    assert (tmp_path / "clean.jsonl").read_bytes() == path.read_bytes()


def test_what_cannot_be_read_exits_with_2_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n{no json\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.jsonl").touch()

    assert dedup(path).exit_code == 2
    assert "row 2" in dedup(path, "--out", tmp_path / "clean.jsonl").stderr
    assert not (tmp_path / "clean.jsonl").exists()
    assert "no file to compare with" in dedup(path, "--against", tmp_path / "empty").stderr
    assert dedup(tmp_path / "missing.jsonl").exit_code == 2
    assert "holds no rows" in dedup(tmp_path / "none.jsonl").stderr
