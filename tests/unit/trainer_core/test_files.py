"""Rows come out of every kind of file alike, and no file ends the reader or takes its memory."""

import csv
import gzip
import io
import itertools
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from backports import zstd
from pyarrow import parquet

from trainer_core.data import files, tables
from trainer_core.data.file_types import FileType, detect_file_type
from trainer_core.data.files import iter_lines, iter_rows
from trainer_core.data.formats import MAX_ROW_BYTES, RowError

ROWS = [{"instruction": f"Q{index}", "response": "Line one.\nLine, “two”."} for index in range(5)]
CONVERSATION = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], **options: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink, **options)
    return sink.getvalue()


def read(tmp_path: Path, content: bytes) -> list[Any]:
    """(place, conversation), or (place, code) for what cannot be used."""
    path = tmp_path / "file"
    path.write_bytes(content)
    return [(place, row.code if isinstance(row, RowError) else row) for place, row in iter_rows(path)]


KINDS = {
    "jsonl": as_jsonl(ROWS),
    "jsonl.gz": gzip.compress(as_jsonl(ROWS)),
    "jsonl.gz of two members": gzip.compress(as_jsonl(ROWS[:2])) + gzip.compress(as_jsonl(ROWS[2:])),
    "jsonl.zst": zstd.compress(as_jsonl(ROWS)),
    "jsonl.zst of two frames": zstd.compress(as_jsonl(ROWS[:2])) + zstd.compress(as_jsonl(ROWS[2:])),
    "csv": as_csv(ROWS),
    "csv with a byte order mark": b"\xef\xbb\xbf" + as_csv(ROWS),
    "csv with semicolons": as_csv(ROWS, delimiter=";"),
    "csv with tabs": as_csv(ROWS, delimiter="\t", lineterminator="\n"),
    "csv.gz": gzip.compress(as_csv(ROWS)),
    "csv.zst": zstd.compress(as_csv(ROWS)),
    "parquet": as_parquet(ROWS),
    "parquet of two row groups": as_parquet(ROWS, compression="zstd", row_group_size=2),
}


@pytest.mark.parametrize("content", KINDS.values(), ids=KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, content: bytes) -> None:
    rows = [row for _, row in read(tmp_path, content)]
    assert [[message["content"] for message in row] for row in rows] == [list(row.values()) for row in ROWS]


def test_parquet_holds_conversations_as_nested_columns(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": CONVERSATION, "id": 1},
        {"messages": [{**CONVERSATION[0], "name": "N"}, *CONVERSATION]},
    ]
    assert read(tmp_path, as_parquet(rows)) == [(1, CONVERSATION), (2, [CONVERSATION[0], *CONVERSATION])]


@pytest.mark.parametrize(
    ("head", "file_type"),
    [
        (b'{"a"', FileType.JSONL),
        (b"\xef\xbb\xbf\n [", FileType.JSONL),
        (b" \n", FileType.JSONL),
        (b"prompt,completion\n", FileType.CSV),
        (b'id;"instruction" ;output\r\n', FileType.CSV),
        (b"PAR1", FileType.PARQUET),
        (b"\x1f\x8b\x08", FileType.GZIP),
        (b"\x28\xb5\x2f\xfd", FileType.ZSTD),
        (b"question,answer\n", None),
        (b"instruction\rresponse\r", None),
        (b"PK\x03\x04", None),
        (b"%PDF-1.7\n", None),
        (b"\x80\x04\x95", None),
        ("prompt,completion\n".encode("utf-16"), None),
    ],
)
def test_a_files_first_bytes_tell_what_it_is(head: bytes, file_type: FileType | None) -> None:
    assert detect_file_type(head) is file_type


def test_lines_are_counted_as_an_editor_counts_them() -> None:
    file = io.BytesIO(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"b": 2}')
    assert list(iter_lines(file)) == [(1, b'{"a": 1}\n'), (4, b'{"b": 2}')]


def test_a_line_that_is_too_long_is_read_past() -> None:
    fits, too_long = b"x" * MAX_ROW_BYTES + b"\n", b"x" * (MAX_ROW_BYTES + 1) + b"\n"
    file = io.BytesIO(too_long + fits + too_long * 1 + b"end")
    assert [(number, line and len(line)) for number, line in iter_lines(file)] == [
        (1, None),
        (2, MAX_ROW_BYTES + 1),
        (3, None),
        (4, 3),
    ]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"instruction": "\xff", "response": "A"}', "not_utf8"),
        (b"[1]", "not_an_object"),
        (b"{" + b" " * MAX_ROW_BYTES, "row_too_large"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes, code: str) -> None:
    assert [result for _, result in read(tmp_path, line)] == [code]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b'{"instruction": "SSN 123-45-6789", "instruction" : "hi", "response": "ok"}', "instruction"),
        (b'{"messages": [{"role": "user", "content": "secret", "content": "hi"}]}', "content"),
        (b'{"instruction": "a", "response": "b", "John Roe": 1, "John Roe": 2}', "a key"),
    ],
)
def test_a_key_that_stands_twice_is_named_because_only_the_last_would_be_read(
    tmp_path: Path, line: bytes, field: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line + b"\n")

    ((_, error),) = iter_rows(path)

    assert isinstance(error, RowError)
    assert (error.code, error.field) == ("doubled_key", field)


@pytest.mark.parametrize(("name", "field"), [("response", "response"), ("Ann Roe", "a column")])
def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path, name: str, field: str) -> None:
    """What stands in the first of them would be scanned by nobody. The name may be a person's."""
    names = ["instruction", "response", *{"Ann Roe", name} - {"response"}, name]
    table = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["A"])] * len(names), names), table)
    sheet = f"{','.join(names)}\n{','.join('A' * len(names))}\n".encode()

    for content in (table.getvalue(), sheet):
        path = tmp_path / "rows"
        path.write_bytes(content)
        ((place, error),) = iter_rows(path)
        assert isinstance(error, RowError)
        assert (place, error.code, error.field) == (0, "doubled_key", field)


def test_what_only_looks_like_keys_in_a_text_is_no_doubled_key(tmp_path: Path) -> None:
    row = {"instruction": '{"a": 1, "a": 2}', "response": '"a": "a": "a":'}

    ((_, found),) = read(tmp_path, as_jsonl([row]))

    assert found != "doubled_key"


def test_a_csv_row_is_named_by_the_line_where_it_begins(tmp_path: Path) -> None:
    content = b'prompt,completion\n"two\nlines",A\n\nQ,\nQ,A,B\n,\n"a"b,c\n\xff,A\nQ,A\n"open'
    assert read(tmp_path, content) == [
        (2, [{"role": "user", "content": "two\nlines"}, {"role": "assistant", "content": "A"}]),
        (5, "empty_response"),
        (6, "invalid_csv"),
        (8, "invalid_csv"),
        (9, "not_utf8"),
        (10, CONVERSATION),
        (11, "invalid_csv"),
    ]


def test_a_quote_that_is_never_closed_ends_the_reading(tmp_path: Path) -> None:
    content = b'prompt,completion\nQ,A\n"Q,A\n' + b"Q,A\n" * (MAX_ROW_BYTES // 2)
    tracemalloc.start()
    assert read(tmp_path, content) == [(2, CONVERSATION), (3, "row_too_large")]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def compress_with_checksum(content: bytes) -> bytes:
    """As the standard tool does."""
    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "changed": lambda content: content[:20] + b"\xff\x00\xff\x00" * 5 + content[40:],
    "followed by something else": lambda content: content + b"something else",
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("pack", [gzip.compress, compress_with_checksum])
def test_a_damaged_compressed_file_is_a_finding(tmp_path: Path, pack: Callable[[bytes], bytes], damage: str) -> None:
    assert read(tmp_path, DAMAGED[damage](pack(as_jsonl(ROWS))))[-1] == (0, "file_damaged")


@pytest.mark.parametrize("damage", ["cut", "followed by something else"])
def test_a_damaged_parquet_file_is_a_finding(tmp_path: Path, damage: str) -> None:
    assert read(tmp_path, DAMAGED[damage](as_parquet(ROWS))) == [(0, "file_damaged")]


def test_a_damaged_page_of_parquet_is_a_finding(tmp_path: Path) -> None:
    content = as_parquet(ROWS * 1000, row_group_size=1000, compression="zstd", use_dictionary=False)
    middle = len(content) // 2
    results = read(
        tmp_path,
        content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 50]) + content[middle + 50 :],
    )
    assert results[0][0] == 1
    assert results[-1] == (0, "file_damaged")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (gzip.compress(gzip.compress(as_jsonl(ROWS))), "unsupported_file_type"),
        (gzip.compress(as_parquet(ROWS)), "unsupported_file_type"),
        (zstd.compress(b"question,answer\nQ,A\n"), "unsupported_file_type"),
        (b"PK\x03\x04", "unsupported_file_type"),
        (as_parquet([{"question": "Q", "answer": "A"}]), "unknown_format"),
    ],
)
def test_a_file_without_readable_rows_is_one_finding(tmp_path: Path, content: bytes, code: str) -> None:
    assert read(tmp_path, content) == [(0, code)]


def test_a_file_that_cannot_be_opened_is_no_finding(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(iter_rows(tmp_path / "file"))


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_an_endless_line_in_a_small_file_takes_no_memory(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    content = pack(b"{" + bytes(50_000_000))
    tracemalloc.start()
    assert read(tmp_path, content) == [(1, "row_too_large")]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_compressed_file_is_read_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MIN_EXPANDED_BYTES", 1_000_000)
    assert read(tmp_path, gzip.compress(b" \n" * 5_000_000)) == [(0, "expands_too_far")]
    assert len(read(tmp_path, gzip.compress(as_jsonl(ROWS)))) == len(ROWS)


def test_more_parquet_rows_than_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MIN_SUSPICIOUS_ROWS", 1000)
    assert read(tmp_path, as_parquet(ROWS[:1] * 100_000)) == [(0, "expands_too_far")]
    assert len(read(tmp_path, as_parquet(ROWS[:1] * 1000))) == 1000


def test_a_large_value_is_held_for_few_parquet_rows_at_once(tmp_path: Path) -> None:
    """A dictionary stores a value once, however often it comes."""
    path = tmp_path / "file"
    path.write_bytes(as_parquet([{"instruction": "Q", "response": "x" * 900_000}] * 500))
    pool = pyarrow.default_memory_pool()
    before = pool.bytes_allocated()
    peak = max(pool.bytes_allocated() for _ in itertools.islice(iter_rows(path), 100))
    assert path.stat().st_size < 1_000_000
    assert peak - before < 50_000_000
