"""Packing: several short rows in one sequence, so that few tokens are padding."""

import bisect

import numpy as np
import numpy.typing as npt


def pack_rows(lengths: npt.NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest row first, each into the fullest sequence that still has room.

    Returns sequences as lists of indices into `lengths`; no row is cut or left out. Runs in O(n log capacity) look-ups.
    """
    sequences: list[list[int]] = []
    sequences_by_room: dict[int, list[int]] = {}  # room left -> sequences with just that room
    rooms: list[int] = []  # the keys, sorted
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        position = bisect.bisect_left(rooms, length)
        if position == len(rooms):
            sequence, room = len(sequences), capacity
            sequences.append([])
        else:
            room = rooms[position]
            sequence = sequences_by_room[room].pop()
            if not sequences_by_room[room]:
                del sequences_by_room[room], rooms[position]
        sequences[sequence].append(row)
        if room - length not in sequences_by_room:
            bisect.insort(rooms, room - length)
        sequences_by_room.setdefault(room - length, []).append(sequence)
    return sequences
