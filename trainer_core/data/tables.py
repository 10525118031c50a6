"""CSV and Parquet: rows of named columns. Torch-free.

Each row comes with its place: in CSV the line where it begins, as an editor counts, in Parquet its number, both from 1.
A RowError at the place 0 is the whole file's.
"""

import codecs
import csv
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from trainer_core.data.file_types import parse_csv_header
from trainer_core.data.formats import COLUMNS, MAX_ROW_BYTES, RowError, has_known_columns
from trainer_core.data.phi.fields import is_plain_key

if TYPE_CHECKING:
    from pyarrow import RecordBatch

Record = dict[str, object]

# One large value that a dictionary repeats is as large again in each row of a batch.
_PARQUET_BATCH_ROWS = 16
_PARQUET_BUFFER_BYTES = 1 << 20
_MIN_SUSPICIOUS_ROWS = 1_000_000


class _RecordLines:
    """A CSV file's lines as text; refuses a record that goes on for too long, as after a quote that nothing closes."""

    def __init__(self, file: BinaryIO, num_lines: int) -> None:
        self._file = file
        self.num_lines = num_lines
        self.num_record_bytes = 0

    def __iter__(self) -> "_RecordLines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.num_lines += 1
        self.num_record_bytes += len(line)
        if self.num_record_bytes > MAX_ROW_BYTES:
            hint = "What follows was not read: a quote may not be closed."
            raise RowError("row_too_large", f"The row is longer than {MAX_ROW_BYTES:,} bytes. {hint}")
        return line.decode()


def iter_csv(file: BinaryIO) -> Iterator[tuple[int, Record | RowError]]:
    """Rows of a file whose first line is a header with known columns; rows of empty fields are none.

    Raises RowError for a header with a name twice.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    header = parse_csv_header(file.readline().removeprefix(codecs.BOM_UTF8))
    assert header is not None, "the file was told to be CSV by its header"
    delimiter, names = header
    if refusal := _refuse_doubled(names):
        raise refusal
    lines = _RecordLines(file, num_lines=1)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        place, lines.num_record_bytes = lines.num_lines + 1, 0
        try:
            fields = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError:
            yield place, RowError("not_utf8", "The row is not UTF-8 text.")
        except csv.Error:
            yield place, RowError("invalid_csv", "The row is not valid CSV.")
        except RowError as error:
            yield place, error
            return
        else:
            if any(field.strip() for field in fields):
                yield place, _name_fields(names, fields)


def _name_fields(names: list[str], fields: list[str]) -> Record | RowError:
    if len(fields) == len(names):
        return dict(zip(names, fields, strict=True))
    return RowError("invalid_csv", f"The row has {len(fields)} fields, and the header has {len(names)}.")


def iter_parquet(path: Path, also: Collection[str] | None = ()) -> Iterator[tuple[int, Record | RowError]]:
    """Rows in batches: only the known columns and those asked for, or all; never more than a page of a column at once.

    A page is what its header says, up to the 2 GiB that the format allows: pyarrow knows no lower bound.
    """
    # Only here: importing it takes 0.2 s and 40 MB, which no other file needs.
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False) as file:
            if refusal := _refuse_parquet(path, file.schema_arrow.names, file.metadata.num_rows):
                yield 0, refusal
                return
            columns = [name for name in file.schema_arrow.names if also is None or name in COLUMNS or name in also]
            place = 0
            for batch in file.iter_batches(_PARQUET_BATCH_ROWS, columns=columns, use_threads=False):
                for index in range(batch.num_rows):
                    place += 1
                    yield place, _get_record(batch, index)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the file
            raise
        yield 0, RowError("file_damaged", "The Parquet file is damaged, or of a kind that cannot be read.")


def _refuse_parquet(path: Path, names: list[str], num_rows: int) -> RowError | None:
    if not has_known_columns(names):
        return RowError("unknown_format", "The Parquet file has none of the known sets of columns.")
    if refusal := _refuse_doubled(names):
        return refusal
    if num_rows > max(_MIN_SUSPICIOUS_ROWS, path.stat().st_size):
        return RowError("expands_too_far", f"The Parquet file says that it holds {num_rows:,} rows, more than bytes.")
    return None


def _refuse_doubled(names: list[str]) -> RowError | None:
    """A row is read by its columns' names: whatever stood in the first of two would be seen by no scan."""
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if not doubled:
        return None
    key = doubled[0] if is_plain_key(doubled[0]) else "a column"
    return RowError("doubled_key", "Two columns have one name: only the last of them would be read.", key)


def _get_record(batch: "RecordBatch", index: int) -> Record | RowError:
    try:
        return {name: column[index].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except UnicodeDecodeError:
        return RowError("not_utf8", "The row is not UTF-8 text.")
    except (ValueError, ArithmeticError):  # a value that Python cannot hold, such as a date beyond the year 9999
        return RowError("wrong_type", "The row holds a value that is no text.")
