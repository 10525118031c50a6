"""What a run tells of its rows is read whole, or not at all."""

from pathlib import Path

import pytest

from trainer_core.data.row_report import MAX_REPORT_BYTES, REPORT_FILE, RowReport, SampleRow, TokenRun
from trainer_core.run_dir import RunDir
from worker.rows import find_row_report


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path)
    run_dir.prepared.mkdir()
    return run_dir


def test_what_the_database_cannot_store_is_replaced(run_dir: RunDir) -> None:
    sample = SampleRow(line=1, tokens=1, trained_tokens=1, runs=[TokenRun(text="a\0b", trained=True)])
    report = RowReport(max_seq_len=8, truncation="drop", sample=[sample])
    (run_dir.prepared / REPORT_FILE).write_text(report.model_dump_json().replace("\ufffd", "\\u0000"))

    found = find_row_report(run_dir)

    assert found is not None
    assert found.sample[0].runs[0].text == "a\ufffdb"


def test_there_is_none_before_it_is_written(run_dir: RunDir) -> None:
    assert find_row_report(run_dir) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"max_seq_len": 8, "truncation": "\\ud800"}'])
def test_what_is_no_report_is_refused(run_dir: RunDir, content: str) -> None:
    (run_dir.prepared / REPORT_FILE).write_text(content)

    with pytest.raises(ValueError, match="RowReport"):
        find_row_report(run_dir)


def test_a_file_that_is_too_large_is_not_read(run_dir: RunDir) -> None:
    with (run_dir.prepared / REPORT_FILE).open("wb") as file:
        file.truncate(MAX_REPORT_BYTES + 1)

    with pytest.raises(ValueError, match="bytes"):
        find_row_report(run_dir)


def test_a_link_to_another_file_is_refused(run_dir: RunDir, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(RowReport(max_seq_len=8, truncation="drop").model_dump_json())
    (run_dir.prepared / REPORT_FILE).symlink_to(tmp_path / "other.json")

    with pytest.raises(ValueError, match="no file"):
        find_row_report(run_dir)
