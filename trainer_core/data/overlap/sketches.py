"""Sketches: MinHash signatures of many rows, from which the Jaccard similarity of any two is estimated.

A text is the set of its stretches of SHINGLE characters. The share of permutations under which two sets have the same
smallest element estimates how much of their union they share (Broder 1997). Questions and answers have signatures of
their own; the smaller of both, permutation by permutation, is the signature of the whole row, since no stretch belongs
to both sides.
"""

import functools
from array import array

import numpy as np
import numpy.typing as npt

from trainer_core.data.overlap.row_text import RowText
from trainer_core.data.overlap.windows import hash_windows, mix

SHINGLE = 5
"""Characters: short answers have too few words for stretches of words."""
PERMUTATIONS = 64

_BLOCK = 4096
_SIDES = (np.uint64(0), np.uint64(0xD1B54A32D192ED03))

Signature = npt.NDArray[np.uint32]
"""[permutations]"""


class Sketches:
    """One for each row that was added, counted from 0: half a kilobyte, however long the row is."""

    def __init__(self) -> None:
        self.asked = array("Q")
        """Equal where the same is asked in the same words."""
        self.numbers = array("Q")
        """Equal where both sides have the same numbers."""
        self.are_long = bytearray()
        """1 where question and answer are."""
        self._signatures = bytearray()

    def __len__(self) -> int:
        return len(self.asked)

    def add(self, row: RowText) -> None:
        for text, side in zip((row.question, row.answer), _SIDES, strict=True):
            self._signatures += sign(text, side).tobytes()
        self.asked.append(row.asked)
        self.numbers.append(row.numbers)
        self.are_long.append(row.is_long)

    def get_signatures(self) -> npt.NDArray[np.uint32]:
        """uint32 [rows, 2, permutations]: question, answer. A view: nothing may be added while it is held."""
        return np.frombuffer(self._signatures, np.uint32).reshape(-1, 2, PERMUTATIONS)


def sign(text: str, side: np.uint64 = _SIDES[0]) -> Signature:
    """uint32 [permutations]: the smallest hash of the text's shingles under each; of an empty text the largest."""
    multipliers, summands = _draw_permutations()
    smallest = np.full(PERMUTATIONS, np.iinfo(np.uint32).max, np.uint32)
    hashes = _hash_shingles(text, side)
    for start in range(0, len(hashes), _BLOCK):
        permuted = np.multiply.outer(multipliers, hashes[start : start + _BLOCK])
        permuted += summands[:, None]
        np.minimum(smallest, permuted.min(axis=1), out=smallest)
    return smallest


def _hash_shingles(text: str, side: np.uint64) -> npt.NDArray[np.uint32]:
    """uint32 [shingles]; a text that is shorter than one is one."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if 0 < len(codes) < SHINGLE:
        codes = np.pad(codes, (0, SHINGLE - len(codes)))
    hashes = hash_windows(codes, SHINGLE)
    hashes ^= side
    return (mix(hashes) >> np.uint64(32)).astype(np.uint32)


@functools.cache
def _draw_permutations() -> tuple[Signature, Signature]:
    """Of 32-bit numbers: multiplied by an odd one, and shifted, both modulo 2 ** 32. The same in every process."""
    generator = np.random.Generator(np.random.PCG64(0))
    draws = generator.integers(0, 2**32, (2, PERMUTATIONS), dtype=np.uint32)
    return draws[0] | np.uint32(1), draws[1]
