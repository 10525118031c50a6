"""The report on an uploaded file."""

import gzip
import tracemalloc
from pathlib import Path

from trainer_core.data.validation import find_length_limit, validate_file

GOOD = b'{"instruction": "Q?", "response": "Answer"}\n'


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return path


def test_a_good_file_has_no_findings_and_counts_its_characters(tmp_path: Path) -> None:
    report = validate_file(write(tmp_path, GOOD * 3))
    assert report.ok
    assert (report.rows, report.valid_rows, report.num_findings, report.truncated) == (3, 3, 0, False)
    assert (report.statistics.characters, report.statistics.response_characters) == (24, 18)


def test_rows_are_counted_by_length(tmp_path: Path) -> None:
    rows = [b'{"instruction": "Q", "response": "%s"}\n' % (b"a" * length) for length in (1, 15, 15, 18, 999_000)]

    lengths = validate_file(write(tmp_path, b"".join(rows))).statistics.lengths

    assert lengths == {16: 3, 19: 1, 1_048_576: 1}


def test_every_length_has_a_limit_that_is_at_most_a_quarter_more() -> None:
    lengths = [*range(17, 3000), 10**6 - 1, 10**6]

    limits = [find_length_limit(length) for length in lengths]

    assert limits == sorted(limits)
    assert all(length <= limit <= 1.25 * length for length, limit in zip(lengths, limits, strict=True))
    assert [find_length_limit(limit) for limit in set(limits)] == list(set(limits))


def test_findings_name_the_line_and_the_field(tmp_path: Path) -> None:
    report = validate_file(write(tmp_path, GOOD + b"\n" + b'{"instruction": "Q?"}\n' + GOOD))
    assert (report.rows, report.valid_rows) == (3, 2)
    [finding] = report.findings
    assert (finding.line, finding.code, finding.field) == (3, "missing_response", "response")


def test_no_finding_repeats_what_a_row_says(tmp_path: Path) -> None:
    secret = b"Jane Doe"
    lines = [
        b'{"instruction": "' + secret + b'"}',
        secret,
        b'{"' + secret + b'": 1}',
        b'{"messages": "' + secret + b'"}',
    ]
    report = validate_file(write(tmp_path, b"\n".join(lines)))
    assert report.num_findings == len(lines)
    assert secret.decode() not in report.model_dump_json()


def test_findings_beyond_the_limit_are_counted_only(tmp_path: Path) -> None:
    report = validate_file(write(tmp_path, b"{\n" * 10), max_findings=4)
    assert (len(report.findings), report.num_findings, report.truncated) == (4, 10, True)


def test_an_empty_file_holds_no_rows(tmp_path: Path) -> None:
    report = validate_file(write(tmp_path, b"\n \n"))
    assert [finding.code for finding in report.findings] == ["no_rows"]
    assert not report.ok


def test_a_damaged_file_is_one_finding(tmp_path: Path) -> None:
    report = validate_file(write(tmp_path, gzip.compress(GOOD * 3)[:-1]))
    assert not report.ok
    assert [(finding.line, finding.code) for finding in report.findings] == [(0, "file_damaged")]


def test_the_statistics_are_the_same_for_every_kind_of_file(tmp_path: Path) -> None:
    table = b"instruction,response\n" + b"Q?,Answer\n" * 3
    reports = [validate_file(write(tmp_path, content)) for content in (GOOD * 3, gzip.compress(GOOD * 3), table)]
    assert reports[0] == reports[1] == reports[2]


def test_memory_does_not_grow_with_one_endless_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"{" * 50_000_000)
    tracemalloc.start()
    try:
        report = validate_file(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [finding.code for finding in report.findings] == ["row_too_large"]
    assert peak < 10_000_000
