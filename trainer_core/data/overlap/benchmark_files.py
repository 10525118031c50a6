"""Files of benchmarks: JSONL, CSV, Parquet or lines of text, with whatever columns their authors chose."""

import csv
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer_core.data.files import iter_records
from trainer_core.data.formats import RowError, parse_record
from trainer_core.errors import ConfigurationError

FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".tsv", ".parquet", ".txt")
_QUESTIONS = ("question", "query", "prompt", "instruction", "input", "problem", "stem", "sent1", "text")
"""Names of the field that asks, the surest first."""
_MAX_TEXT = 1_000_000


def list_benchmark_files(path: Path) -> list[Path]:
    """The file, or those in the folder and below it. Raises ConfigurationError where there is none, and OSError."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in found if file.name.lower().endswith(FILE_ENDINGS)]
    if not files:
        raise ConfigurationError(
            "no_benchmark_file",
            f"{path}: no file to compare with",
            remedy=f"Name a folder or file of questions: {', '.join(FILE_ENDINGS)}.",
        )
    return files


def iter_questions(file: Path) -> Iterator[tuple[int, str]]:
    """Of every row that has one, with its place. Raises ConfigurationError where a row cannot be read, and OSError.

    Of a record it is the field that is called so, or a conversation's first turn of the user, or else the longest text.
    """
    try:
        for row, record in _iter_records(file):
            if isinstance(record, RowError):
                raise _refuse(file, row, record.message)
            if text := _find_question(record).strip():
                yield row, text
    except (UnicodeDecodeError, csv.Error):
        raise _refuse(file, 0, "It is not UTF-8 text, or not CSV.") from None


def _iter_records(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | RowError]]:
    name = file.name.lower()
    if name.endswith(".parquet"):
        yield from _iter_parquet(file)
    elif name.endswith((".csv", ".tsv")):
        csv.field_size_limit(_MAX_TEXT)
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter="\t" if name.endswith(".tsv") else ",")
            header = next(reader, [])
            if not {name.strip().lower() for name in header} & set(_QUESTIONS):  # none: the first line is a row
                yield 1, dict(zip(map(str, range(len(header))), header, strict=True))
                header = [str(index) for index in range(len(header))]
            for fields in reader:
                yield reader.line_num, dict(zip(header, fields, strict=False))
    elif name.endswith(".txt"):
        with file.open(encoding="utf-8-sig") as lines:
            yield from ((number, {"text": line}) for number, line in enumerate(lines, 1))
    else:
        yield from iter_records(file)


def _iter_parquet(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | RowError]]:
    # Only here: importing it takes 0.2 s and 40 MB, which no other file needs.
    import pyarrow
    from pyarrow.parquet import ParquetFile

    row = 0
    try:
        with ParquetFile(file, pre_buffer=False) as table:
            for batch in table.iter_batches(64, use_threads=False):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the file
            raise
        yield row, RowError("file_damaged", "The Parquet file is damaged, or of a kind that cannot be read.")


def _find_question(record: Mapping[str, Any]) -> str:
    fields = {str(key).strip().lower(): value for key, value in record.items()}
    if {"messages", "conversations"} & fields.keys():
        try:
            return next((message["content"] for message in parse_record(fields) if message["role"] == "user"), "")
        except RowError:
            return ""
    for name in _QUESTIONS:
        if isinstance(value := fields.get(name), str) and value.strip():
            rest = fields.get("input") if name == "instruction" else None
            return f"{value}\n{rest}" if isinstance(rest, str) else value
    return max((value for value in fields.values() if isinstance(value, str)), key=len, default="")


def _refuse(file: Path, row: int, message: str) -> ConfigurationError:
    place = f", row {row}" if row else ""
    return ConfigurationError(
        "benchmark_unreadable",
        f"{file.name}{place}: {message}",
        remedy="Mend the file, or take it out of the folder: what cannot be read cannot be compared with.",
    )
