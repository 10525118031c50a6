"""`medtune replace` writes a whole new file or none, and `medtune vault` leads back with the key alone."""

import contextlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import build_app

ROOT = Path(__file__).parents[3]
ROWS = [
    {"instruction": "Patient: John Smith", "response": "Mr. Smith coughs.", "patient": "P-00017"},
    {"instruction": "What helps?", "response": "Honey, John Smith.", "patient": "P-00017"},
]


def run(*arguments: object) -> Result:
    command = str(arguments[0])
    return CliRunner().invoke(build_app(command), [str(argument) for argument in arguments])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_placeholders_come_in_the_place_of_identifiers(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    result = run("replace", rows, out)

    assert result.exit_code == 0
    assert read(out)[0]["response"] == "Mr. [PATIENT_1] coughs."
    assert "2 of 2 rows changed" in result.stdout
    assert "Smith" not in result.output


def test_the_vault_leads_back_for_whoever_has_the_key(rows: Path, tmp_path: Path) -> None:
    key, vault, out = tmp_path / "key", tmp_path / "vault.jsonl", tmp_path / "out.jsonl"
    assert run("vault", "key", key).exit_code == 0
    assert run("vault", "key", tmp_path / "other").exit_code == 0
    assert run("replace", rows, out, "--patient-key", "patient", "--vault", vault, "--key", key).exit_code == 0

    shown = run("vault", "show", vault, "--key", key, "--token", "[PATIENT_1]")

    assert [json.loads(line)["value"] for line in shown.stdout.splitlines()] == ["John Smith", "Smith"]
    assert vault.stat().st_mode & 0o777 == 0o600
    assert "Smith" not in vault.read_text()
    wrong = run("vault", "show", vault, "--key", tmp_path / "other")
    assert wrong.exit_code == 1
    assert "does not open" in wrong.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--strategy", "expert_determination"], "medtune vault key"),
        (["--vault", "vault.jsonl"], "medtune vault key"),
        (["--key", "none"], "there is no key file"),
        (["--patient-key", "patien"], "patien"),
        (["--patterns", "none.json"], "none.json"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_written(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)

    result = run("replace", rows, "out.jsonl", *options)

    assert result.exit_code == 2
    assert words in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_row_that_cannot_be_read_is_named(rows: Path, tmp_path: Path) -> None:
    rows.write_text(rows.read_text() + "{not json\n")

    result = run("replace", rows, tmp_path / "out.jsonl")

    assert result.exit_code == 2
    assert "row 3" in result.output
    assert not (tmp_path / "out.jsonl").exists()


def test_no_file_is_overwritten(rows: Path) -> None:
    before = rows.read_bytes()

    result = run("replace", rows, rows)

    assert result.exit_code == 2
    assert "there is a file already" in result.output
    assert rows.read_bytes() == before


def test_a_disk_that_is_full_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    """A limit on file sizes stands for the disk: the kernel refuses the write just so."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"MRN: {10_000 + i}"}) + "\n" for i in range(2_000)))
    limit = (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])

    result = subprocess.run(
        [sys.executable, "-m", "cli.main", "replace", rows, tmp_path / "out.jsonl"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip

    assert result.returncode == 2
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_disk_that_is_full_at_the_last_row_leaves_no_vault_without_rows(tmp_path: Path) -> None:
    rows, key, out, vault = (tmp_path / name for name in ("rows.jsonl", "key.txt", "out.jsonl", "vault.jsonl"))
    rows.write_text(json.dumps({"instruction": "MRN: 10000", "response": "Rest. " * 1000}) + "\n")
    assert run("vault", "key", key).exit_code == 0
    options = [str(word) for word in ("replace", rows, out, "--vault", vault, "--key", key)]
    assert run(*options).exit_code == 0
    limit = (out.stat().st_size - 1, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert vault.stat().st_size < limit[0]
    out.unlink()
    vault.unlink()

    result = subprocess.run(
        [sys.executable, "-m", "cli.main", *options], cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip

    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    assert sorted(tmp_path.iterdir()) == [key, rows]


def is_writing(pid: int, folder: Path) -> bool:
    """It holds a file of the folder that has bytes, and no name yet."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = str(link.readlink())
            if target.startswith(str(folder)) and not target.endswith("rows.jsonl") and link.stat().st_size:
                return True
    return False


def test_a_kill_leaves_no_half_file(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"instruction": f"Dr. Miller, MRN: {i + 10_000}"}) + "\n" for i in range(50_000))
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "replace", rows, tmp_path / "out.jsonl"], cwd=ROOT, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not is_writing(process.pid, tmp_path) and process.poll() is None and time.monotonic() < deadline:
        pass
    assert process.poll() is None
    process.kill()
    process.communicate()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_closed_pipe_ends_a_scan_quietly(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"MRN: {i + 10_000}"}) + "\n" for i in range(3_000)))
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "scan", rows, "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None

    process.stdout.readline()
    process.stdout.close()

    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) in (0, 1)
