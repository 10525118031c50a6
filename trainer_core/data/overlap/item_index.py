"""ItemIndex: what a model is judged by, searched for in rows by the words that both have in a row."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from trainer_core.data.overlap.items import Item
from trainer_core.data.overlap.row_text import RowText, normalise, split_words
from trainer_core.data.overlap.windows import Hashes, hash_windows

LONG, SHORT = 13, 8
"""Words of an n-gram, for items that have so many; one with fewer than SHORT must be all that is asked."""
CONTAINED = {LONG: 0.5, SHORT: 1.0}
"""A row contains an item if it has this share of the item's n-grams: a shorter one must be there word by word."""
_BOILERPLATE_ITEMS = 20
"""An n-gram of more items than that is how such questions are asked, and not what they ask."""
_FILTER_BITS = 4
"""The filter has 16 places for each n-gram: most rows have none of them, and are done after one look."""


class Match(NamedTuple):
    item: Item
    share: float
    """Of the item's n-grams."""


class ItemIndex:
    """Raises nothing: an item without words is never found."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.items: list[Item] = []
        self._whole: dict[int, int] = {}
        grams: dict[int, list[Hashes]] = {LONG: [], SHORT: []}
        owners: dict[int, list[int]] = {LONG: [], SHORT: []}
        for item in items:
            words = split_words(normalise(item.text))
            whole = hash(tuple(words))
            if not words or whole in self._whole:
                continue
            number = self._whole[whole] = len(self.items)
            self.items.append(item._replace(text=""))
            if len(words) >= SHORT:
                size = LONG if len(words) >= LONG else SHORT
                grams[size].append(np.unique(hash_windows(_hash_words(words), size)))
                owners[size].append(number)
        tables = [_Table(size, grams[size], owners[size]) for size in grams if grams[size]]
        self._tables = [table for table in tables if len(table)]

    def count_sources(self) -> dict[str, int]:
        """Items by benchmark file, and the probes."""
        return dict(Counter("safety probes" if i.code == "probe_overlap" else i.source for i in self.items))

    def find(self, row: RowText) -> list[Match]:
        """The items that a row contains, in the order in which they came."""
        shares: dict[int, float] = {}
        for is_user, text in row.turns:
            words = split_words(text)
            if is_user and (number := self._whole.get(hash(tuple(words)))) is not None:
                shares[number] = 1.0
            hashes = _hash_words(words)
            for table in self._tables:
                for number, share in table.find(hashes):
                    shares[number] = max(share, shares.get(number, 0.0))
        return [Match(self.items[number], share) for number, share in sorted(shares.items())]


class _Table:
    """The n-grams of items, sorted."""

    def __init__(self, size: int, grams: list[Hashes], owners: list[int]) -> None:
        self._size = size
        every = np.concatenate(grams)
        owner = np.repeat(np.array(owners, np.int32), [len(hashes) for hashes in grams])
        order = np.argsort(every, kind="stable")
        every, owner = every[order], owner[order]
        _, inverse, counts = np.unique(every, return_inverse=True, return_counts=True)
        tells = counts[inverse] <= _BOILERPLATE_ITEMS
        self._grams, self._owners = every[tells], owner[tells]
        self._num_grams = np.bincount(self._owners)
        self._shift = np.uint64(64 - max(1, len(every) - 1).bit_length() - _FILTER_BITS)
        self._filter = np.zeros(1 << (64 - int(self._shift)), np.bool_)
        self._filter[self._grams >> self._shift] = True

    def __len__(self) -> int:
        return len(self._grams)

    def find(self, words: Hashes) -> Iterator[tuple[int, float]]:
        """Items of which a turn with these words has enough n-grams, and how many of them."""
        hashes = hash_windows(words, self._size)
        hashes = hashes[self._filter[hashes >> self._shift]]
        places = np.minimum(np.searchsorted(self._grams, hashes), len(self._grams) - 1)
        seen = hashes[self._grams[places] == hashes]
        if not len(seen):
            return
        seen = np.unique(seen)
        first = np.searchsorted(self._grams, seen, "left")
        after = np.searchsorted(self._grams, seen, "right")
        owners = np.concatenate([self._owners[start:end] for start, end in zip(first, after, strict=True)])
        numbers, hits = np.unique(owners, return_counts=True)
        shares = hits / self._num_grams[numbers]
        for number, share in zip(numbers.tolist(), shares.tolist(), strict=True):
            if share >= CONTAINED[self._size]:
                yield number, share


def _hash_words(words: Sequence[str]) -> Hashes:
    """uint64 [words]: Python's own hashes. They differ from process to process, and never leave it."""
    return np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
