"""Packing: several short rows in one sequence, so that few tokens are padding."""

import bisect
import dataclasses
from array import array
from pathlib import Path

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """Rows in sequences, as two arrays: no object per row, and quick to load."""

    rows: IntArray
    """The rows of all sequences, one after another."""
    offsets: IntArray
    """[sequences + 1]: sequence i holds rows[offsets[i]:offsets[i + 1]]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, sequence: int) -> list[int]:
        if not 0 <= sequence < len(self):
            raise IndexError(sequence)
        rows: list[int] = self.rows[self.offsets[sequence] : self.offsets[sequence + 1]].tolist()
        return rows

    def sum_rows(self, values: IntArray) -> IntArray:
        """For each sequence, the sum over its rows of a value that every row has."""
        return np.diff(np.concatenate(([0], np.cumsum(values[self.rows])))[self.offsets])

    def save(self, folder: Path, name: str) -> None:
        np.save(folder / f"{name}_sequences.npy", self.rows)
        np.save(folder / f"{name}_sequence_offsets.npy", self.offsets)

    @staticmethod
    def load(folder: Path, name: str) -> "Arrangement":
        return Arrangement(np.load(folder / f"{name}_sequences.npy"), np.load(folder / f"{name}_sequence_offsets.npy"))


def arrange_rows(lengths: IntArray, selected: IntArray, *, max_seq_len: int, packing: bool) -> Arrangement:
    """The selected rows in sequences of up to `max_seq_len` tokens, or one row each."""
    if not packing:
        return Arrangement(selected, np.arange(len(selected) + 1))
    packed = pack_rows(lengths[selected], max_seq_len)
    return Arrangement(selected[packed.rows], packed.offsets)


def pack_rows(lengths: IntArray, capacity: int) -> Arrangement:
    """Best-fit decreasing: the longest row first, each into the fullest sequence that still has room.

    The rows are indices into `lengths`; none is cut or left out. Runs in O(n log capacity) look-ups.
    """
    order = np.argsort(-lengths, kind="stable")
    sequence_of = np.empty(len(lengths), dtype=np.int64)  # for the rows in that order
    num_sequences = 0
    sequences_by_room: dict[int, list[int]] = {}  # room left -> sequences with just that room
    rooms: list[int] = []  # the keys, sorted
    for index, length in enumerate(array("q", lengths[order].tobytes())):
        position = bisect.bisect_left(rooms, length)
        if position == len(rooms):
            sequence, room = num_sequences, capacity
            num_sequences += 1
        else:
            room = rooms[position]
            sequence = sequences_by_room[room].pop()
            if not sequences_by_room[room]:
                del sequences_by_room[room], rooms[position]
        sequence_of[index] = sequence
        if room - length not in sequences_by_room:
            bisect.insort(rooms, room - length)
        sequences_by_room.setdefault(room - length, []).append(sequence)
    sizes = np.bincount(sequence_of, minlength=num_sequences)
    return Arrangement(order[np.argsort(sequence_of, kind="stable")], np.concatenate(([0], np.cumsum(sizes))))
