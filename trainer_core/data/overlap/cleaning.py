"""A copy of a file of rows without some of them."""

from collections.abc import Collection
from pathlib import Path

from trainer_core.data.files import iter_json_rows, iter_rows
from trainer_core.data.formats import RowError
from trainer_core.data.new_file import write_new_file
from trainer_core.errors import DataError


def write_without(path: Path, rows: Collection[int], out: Path) -> int:
    """The other rows as JSONL, in order, each as it stands in the file; returns how many.

    The new file is there whole or not at all. Raises DataError for a row that cannot be read or where none would be
    left, FileExistsError, and other OSErrors.
    """
    num_rows = 0
    with write_new_file(out) as file:
        for (place, row), (_, line) in zip(iter_rows(path), iter_json_rows(path), strict=True):
            for error in (row, line):
                if isinstance(error, RowError):
                    raise _refuse(place, error)
            if place not in rows:
                assert isinstance(line, str)
                file.write(line.removeprefix("\ufeff").rstrip("\r\n").encode() + b"\n")
                num_rows += 1
        if not num_rows:
            raise DataError("no_rows_left", "Every row would be left out", remedy="Compare with other files.")
    return num_rows


def _refuse(place: int, error: RowError) -> DataError:
    return DataError(
        "unreadable_row",
        f"row {place}: {error.message} ({error.code})",
        remedy="Mend the row or take it out: what cannot be read cannot be compared.",
        row=place,
    )
