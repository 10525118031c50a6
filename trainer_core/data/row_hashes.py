"""Hashes of rows: they tell whether a row is in a file, when the file itself is not at hand or no longer there."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer_core.data.files import iter_records
from trainer_core.data.formats import RowError
from trainer_core.data.spill import Spill

HASH_BYTES = 32


def hash_row(row: Mapping[str, Any]) -> bytes:
    """SHA-256 of the row as JSON with sorted keys, no spaces and ASCII only, as Python's `json.dumps` writes it."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":"), default=str).encode()).digest()


def iter_row_hashes(path: Path, on_row: Callable[[], object] = lambda: None) -> Iterator[bytes]:
    """Of every row, in order: of CSV as texts, of Parquet the known columns. Raises RowError, OSError."""
    for _, record in iter_records(path):
        on_row()
        if isinstance(record, RowError):
            raise record
        yield hash_row(record)


class HashedRows:
    """Sorted hashes in shards by their first byte, so that a search reads one of them. They are on the disk."""

    def __init__(self, hashes: Iterable[bytes], folder: Path | None = None) -> None:
        """`folder`: where they wait; None: where temporary files are."""
        self._spill = Spill(folder)
        for row_hash in hashes:
            self._spill.add(row_hash)

    def iter_shards(self) -> Iterator[tuple[int, bytes]]:
        """Number and sorted hashes of each that is not empty."""
        return ((number, _sort(shard)) for number, shard in self._spill.iter_parts())

    def compute_digest(self) -> str:
        """SHA-256 over the sorted hashes: the same rows in another order have the same."""
        digest = hashlib.sha256()
        for _, shard in self.iter_shards():
            digest.update(shard)
        return digest.hexdigest()


def _sort(shard: bytes) -> bytes:
    return b"".join(sorted(shard[at : at + HASH_BYTES] for at in range(0, len(shard), HASH_BYTES)))
