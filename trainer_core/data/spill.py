"""Spill: many small records that wait on the disk until all of them are there, so that memory stays flat."""

import tempfile
import weakref
from array import array
from collections.abc import Iterator
from pathlib import Path

NUM_PARTS = 256
_BUFFER_BYTES = 8 << 10


class Spill:
    """Records of hashes, in parts by their first byte, each small enough to be read at once."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where the file is, which has no name; None: where temporary files are."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  It lives as long as this does.
        weakref.finalize(self, self._file.close)
        self._buffers = [bytearray() for _ in range(NUM_PARTS)]
        self._pieces = [array("q") for _ in range(NUM_PARTS)]
        self._end = 0

    def add(self, record: bytes) -> None:
        part = record[0]
        self._buffers[part] += record
        if len(self._buffers[part]) >= _BUFFER_BYTES:
            self._write(part)

    def iter_parts(self) -> Iterator[tuple[int, bytes]]:
        """Those that are not empty, with their numbers."""
        for part in range(NUM_PARTS):
            if content := self._read(part):
                yield part, content

    def _write(self, part: int) -> None:
        buffer = self._buffers[part]
        self._file.seek(self._end)
        self._file.write(buffer)
        self._pieces[part].extend((self._end, len(buffer)))
        self._end += len(buffer)
        buffer.clear()

    def _read(self, part: int) -> bytes:
        pieces = self._pieces[part]
        content = []
        for place, length in zip(pieces[::2], pieces[1::2], strict=True):
            self._file.seek(place)
            content.append(self._file.read(length))
        return b"".join((*content, self._buffers[part]))
