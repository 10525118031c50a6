"""Files of rows: one way to read JSONL, CSV and Parquet, and JSONL and CSV in gzip or zstd. Torch-free.

Files are what their first bytes say. Memory stays flat whatever they hold: an endless line is read past in pieces, and
a compressed file is decompressed in pieces and only so far.
"""

import codecs
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from trainer_core.data.file_types import ACCEPTED_FILES, HEAD_BYTES, FileType, detect_file_type
from trainer_core.data.formats import MAX_ROW_BYTES, Message, RowError, parse_record
from trainer_core.data.phi.fields import is_plain_key
from trainer_core.data.tables import Record, iter_csv, iter_parquet

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Line = TypeVar("Line")

MAX_EXPANSION = 100
"""A compressed file may hold so many times its own size: text seldom shrinks to a tenth."""
MIN_EXPANDED_BYTES = 1 << 30
"""What any compressed file may hold."""

_ZSTD_WINDOW_LOG = 27  # 128 MiB, the standard tool's own limit
_BUFFER_BYTES = 1 << 16
_END_OF_KEY = re.compile(rb'"\s*:')
"""As often as there are keys; in texts it may stand, too."""
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError)


def iter_rows(path: Path) -> Iterator[tuple[int, list[Message] | RowError]]:
    """Every row with its place: its conversation, or what is wrong with it. Never raises for what a file holds.

    A place is a line's number as an editor counts (CSV: where the row begins), in Parquet the row's, both from 1;
    0 stands for the whole file. Raises OSError where the disk fails.
    """
    for place, record in iter_records(path):
        yield place, _parse(record)


def iter_records(path: Path, columns: Collection[str] | None = ()) -> Iterator[tuple[int, Record | RowError]]:
    """Every row with its place, as `iter_rows`, but with its keys as they are.

    Of Parquet come the known columns, and these; with None all, whatever their type.
    """
    try:
        yield from _iter_file(path, _parse_json, columns)
    except RowError as error:
        yield 0, error
    except _DAMAGED:
        yield 0, _build_damage()


def iter_json_rows(path: Path, columns: Collection[str] = ()) -> Iterator[tuple[int, str | RowError]]:
    """Every row with its place, as a line of JSON that nobody parsed yet: JSONL's own, or one made of the record.

    Of Parquet come the known columns, and these. Fails as `iter_records` does.
    """
    try:
        for place, row in _iter_file(path, _decode_line, columns):
            yield place, _write_json(row) if isinstance(row, dict) else row
    except RowError as error:
        yield 0, error
    except _DAMAGED:
        yield 0, _build_damage()


def _decode_line(line: bytes | None) -> str | RowError:
    try:
        return line.decode() if line is not None else _build_oversize()
    except UnicodeDecodeError:
        return RowError("not_utf8", "The row is not UTF-8 text.")


def _write_json(record: Record) -> str | RowError:
    try:
        return json.dumps(record, ensure_ascii=False, default=_write_value) + "\n"
    except (TypeError, ValueError):
        return RowError("wrong_type", "The row holds a value that is no text.")


def _write_value(value: object) -> str:
    if isinstance(value, bytes):
        raise TypeError
    return str(value)


def _parse(record: Record | RowError) -> list[Message] | RowError:
    if isinstance(record, RowError):
        return record
    try:
        return parse_record(record)
    except RowError as error:
        return error


def _iter_file(
    path: Path, read_line: Callable[[bytes | None], Line | RowError], columns: Collection[str] | None = ()
) -> Iterator[tuple[int, Line | Record | RowError]]:
    """JSONL's lines as `read_line` makes them; of Parquet the known columns and these, or all."""
    outer = _detect(path, compression=None)
    if outer is FileType.PARQUET:
        yield from iter_parquet(path, columns)
        return
    compression = outer if outer in (FileType.GZIP, FileType.ZSTD) else None
    inner = _detect(path, compression) if compression else outer
    with _open(path, compression) as file:
        if inner is FileType.JSONL:
            yield from ((number, read_line(line)) for number, line in iter_lines(file))
        elif inner is FileType.CSV:
            yield from iter_csv(file)
        else:
            raise RowError("unsupported_file_type", f"The file cannot be read: send {ACCEPTED_FILES}.")


def _build_damage() -> RowError:
    return RowError("file_damaged", "The compressed file is damaged: its end is missing, or bytes were changed.")


def _build_oversize() -> RowError:
    return RowError("row_too_large", f"The row is longer than {MAX_ROW_BYTES:,} bytes.")


def _detect(path: Path, compression: FileType | None) -> FileType | None:
    with _open(path, compression) as file:
        return detect_file_type(file.read(HEAD_BYTES))


def _open(path: Path, compression: FileType | None) -> BinaryIO:
    if compression is None:
        return path.open("rb")
    if compression is FileType.GZIP:
        file: io.BufferedIOBase = gzip.GzipFile(path)
    else:
        file = zstd.ZstdFile(path, options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
    max_bytes = max(MIN_EXPANDED_BYTES, MAX_EXPANSION * path.stat().st_size)
    return io.BufferedReader(_BoundedReader(file, max_bytes), _BUFFER_BYTES)


class _BoundedReader(io.RawIOBase):
    """A decompressed stream that refuses to go on for ever."""

    def __init__(self, file: io.BufferedIOBase, max_bytes: int) -> None:
        self._file = file
        self._num_bytes_left = max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        num_bytes = self._file.readinto(buffer)
        self._num_bytes_left -= num_bytes
        if self._num_bytes_left < 0:
            raise RowError("expands_too_far", f"The compressed file holds more than {MAX_EXPANSION} times its size.")
        return num_bytes

    def close(self) -> None:
        self._file.close()
        super().close()


def iter_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Every line that is not blank with its 1-based number; None stands for one over MAX_ROW_BYTES."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line


def _parse_json(line: bytes | None) -> Record | RowError:
    if line is None:
        return _build_oversize()
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return RowError("not_utf8", "The row is not UTF-8 text.")
    except (ValueError, RecursionError):
        return RowError("invalid_json", "The row is not valid JSON.")
    if not isinstance(record, dict):
        return RowError("not_an_object", "The row is JSON, but not an object with keys: write one object a line.")
    if len(_END_OF_KEY.findall(line)) > _count_keys(record) and (key := _find_doubled_key(line)) is not None:
        return RowError("doubled_key", "A key stands twice in one object: only the last of them would be read.", key)
    return record


def _count_keys(record: Record) -> int:
    """Of the object and all within it."""
    num_keys = 0
    stack: list[Any] = [record]
    while stack:
        value = stack.pop()
        num_keys += len(value) if isinstance(value, dict) else 0
        inner = value.values() if isinstance(value, dict) else value
        stack += [part for part in inner if isinstance(part, dict | list)]
    return num_keys


def _find_doubled_key(line: bytes) -> str | None:
    doubled: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        counts = Counter(key for key, _ in pairs)
        doubled.extend(key for key, count in counts.items() if count > 1)

    json.loads(line, object_pairs_hook=look)
    return next((key if is_plain_key(key) else "a key" for key in doubled), None)
