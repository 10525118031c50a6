"""Neighbours: earlier rows that a row is nearly the same as, by locality-sensitive hashing over their sketches.

The signature is cut into bands: of long rows the whole row's, of others the answer's. Rows that agree in a whole band,
in their numbers and, unless they are long, in their question, meet, and only those that meet are compared: two of
similarity s meet with the probability 1 - (1 - s ** ROWS_PER_BAND) ** BANDS.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer_core.data.overlap.sketches import PERMUTATIONS, Sketches

THRESHOLD = 0.7
"""Answers must be so similar, and the questions of long rows; others must have the same words."""
ROWS_PER_BAND = 4
BANDS = PERMUTATIONS // ROWS_PER_BAND

_MAX_MET = 64
"""So many rows are remembered of each band's value: a phrase that every row has costs no more than that."""
_ALONE = -1
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Neighbour(NamedTuple):
    row: int
    similarity: float
    """Estimated; of question and answer the lower."""


class Meetings:
    """Which rows agree in which bands."""

    def __init__(self, sketches: Sketches) -> None:
        self._signatures = sketches.get_signatures()
        self._asked = np.frombuffer(sketches.asked, np.uint64)
        self._are_long = np.frombuffer(sketches.are_long, np.bool_)
        self._keys = np.where(self._are_long, np.uint64(0), self._asked) ^ (
            np.frombuffer(sketches.numbers, np.uint64) * _FACTOR
        )
        self.groups = np.stack([self._group(band) for band in range(BANDS)], axis=1)
        """int32 [rows, bands]: rows with the same number agree in that band; ALONE: with no other row."""

    def list_rows(self) -> list[int]:
        """Those that agree with any other in any band."""
        rows: list[int] = np.flatnonzero((self.groups != _ALONE).any(axis=1)).tolist()
        return rows

    def compare(self, row: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64 [others]: of rows that met, the similarity of the answers, or of the questions if that is lower."""
        questions, answers = (self._signatures[others] == self._signatures[row]).mean(axis=2).T
        questions = np.where(self._asked[others] == self._asked[row], 1.0, questions)
        lower: npt.NDArray[np.float64] = np.minimum(questions, answers)
        return lower

    def _group(self, band: int) -> npt.NDArray[np.int32]:
        columns = self._signatures[:, :, band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND]
        columns = np.where(self._are_long[:, None], columns.min(axis=1), columns[:, 1])
        values = self._keys
        for column in columns.T:
            values = (values ^ column) * _FACTOR
            values ^= values >> np.uint64(29)
        _, groups, sizes = np.unique(values, return_inverse=True, return_counts=True)
        return np.where(sizes[groups] > 1, groups, _ALONE).astype(np.int32)


class Neighbours:
    """Rows that were added, to be found by rows that are nearly the same."""

    def __init__(self, meetings: Meetings) -> None:
        self._meetings = meetings
        self._met: defaultdict[int, list[int]] = defaultdict(list)

    def add(self, row: int) -> None:
        for key in self._list_keys(row):
            if len(met := self._met[key]) < _MAX_MET:
                met.append(row)

    def find(self, row: int) -> Neighbour | None:
        """The most similar of the rows that were added, the first of several; None: none is similar enough."""
        met = sorted({other for key in self._list_keys(row) for other in self._met.get(key, ())})
        if not met:
            return None
        similarities = self._meetings.compare(row, np.array(met))
        best = int(similarities.argmax())
        return Neighbour(met[best], float(similarities[best])) if similarities[best] >= THRESHOLD else None

    def _list_keys(self, row: int) -> list[int]:
        """Band and group as one number."""
        groups = self._meetings.groups[row].tolist()
        return [group * BANDS + band for band, group in enumerate(groups) if group != _ALONE]
