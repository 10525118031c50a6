"""Packing loses no row and fills sequences well."""

import numpy as np

from trainer_core.data.packing import pack_rows


def pack(lengths: list[int], capacity: int) -> list[list[int]]:
    packed = pack_rows(np.array(lengths, dtype=np.int64), capacity)
    return [packed[index] for index in range(len(packed))]


def test_every_row_is_packed_once_and_no_sequence_overflows() -> None:
    lengths = np.random.default_rng(0).integers(1, 513, size=2000)
    sequences = pack(lengths.tolist(), 512)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(2000))
    assert max(lengths[sequence].sum() for sequence in sequences) <= 512


def test_packing_leaves_little_room() -> None:
    lengths = np.random.default_rng(1).integers(10, 200, size=1000)
    sequences = pack(lengths.tolist(), 512)
    assert len(sequences) <= 1.02 * lengths.sum() / 512 + 1


def test_the_fullest_sequence_that_fits_takes_the_row() -> None:
    assert pack([6, 7, 3, 4], 10) == [[1, 2], [0, 3]]


def test_no_rows_make_no_sequences() -> None:
    assert pack([], 10) == []
