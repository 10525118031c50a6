"""File types, told by a file's first bytes and never by its name. Torch-free, and light enough for the API."""

import codecs
import csv
import enum

from trainer_core.data.formats import TEXT_COLUMNS

ACCEPTED_FILES = "JSONL or CSV in UTF-8, plain or compressed by gzip or zstd; or Parquet"
HEAD_BYTES = 65_536
"""How much of a file's beginning `detect_file_type` wants."""

_DELIMITERS = ",;\t"


class FileType(enum.StrEnum):
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    GZIP = "gzip"
    ZSTD = "zstd"


_MAGIC = {b"PAR1": FileType.PARQUET, b"\x1f\x8b": FileType.GZIP, b"\x28\xb5\x2f\xfd": FileType.ZSTD}


def detect_file_type(head: bytes) -> FileType | None:
    """What a file that begins like this is; None is nothing that rows can be read from.

    A text is JSONL if its first character says so, or if it is blank; CSV needs a header with known columns.
    """
    for magic, file_type in _MAGIC.items():
        if head.startswith(magic):
            return file_type
    text = head.removeprefix(codecs.BOM_UTF8)
    if text.lstrip()[:1] in (b"", b"{", b"["):
        return FileType.JSONL
    return FileType.CSV if parse_csv_header(text.partition(b"\n")[0]) else None


def parse_csv_header(line: bytes) -> tuple[str, list[str]] | None:
    """A CSV file's delimiter (comma, semicolon or tab) and columns, by the known ones; None without them."""
    for delimiter in _DELIMITERS:
        try:
            fields = next(csv.reader([line.decode(errors="replace")], delimiter=delimiter), [])
        except csv.Error:
            continue
        names = [name.strip() for name in fields]
        if any(columns.issubset(names) for columns in TEXT_COLUMNS):
            return delimiter, names
    return None
