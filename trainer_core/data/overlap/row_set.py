"""RowSet: numbers of rows, a bit for each."""

from collections.abc import Iterable, Iterator, Set


class RowSet(Set[int]):
    """A million rows take 125 kB, however many of them are in it."""

    def __init__(self, rows: Iterable[int] = ()) -> None:
        self._bits = bytearray()
        self._count = 0
        for row in rows:
            self.add(row)

    def add(self, row: int) -> None:
        byte, bit = row >> 3, 1 << (row & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        self._count += not self._bits[byte] & bit
        self._bits[byte] |= bit

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and row >> 3 < len(self._bits) and bool(self._bits[row >> 3] & 1 << (row & 7))

    def __iter__(self) -> Iterator[int]:
        return (byte * 8 + bit for byte, bits in enumerate(self._bits) if bits for bit in range(8) if bits & 1 << bit)

    def __len__(self) -> int:
        return self._count
