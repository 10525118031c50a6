"""A dataset's check for overlap with itself, with benchmark files and with the safety probes."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from trainer_core.data.overlap.items import Item, iter_benchmarks, iter_probes
from trainer_core.data.overlap.report import OverlapReport

MAX_SKETCHES = 200_000
"""So that a check takes no more memory for a larger file."""


def check_overlap(path: Path, benchmarks: Path | None, on_row: Callable[[], None]) -> OverlapReport:
    """`on_row` is called for every row, and for every question read. Raises ConfigurationError and OSError."""
    # Only here: numpy takes 0.2 s and 30 MB, which a worker that trains, and the API, never need.
    from trainer_core.data.overlap.item_index import ItemIndex
    from trainer_core.data.overlap.search import find_overlap

    def iter_items() -> Iterator[Item]:
        for item in chain(iter_probes(), iter_benchmarks([benchmarks] if benchmarks else [])):
            on_row()
            yield item

    index = ItemIndex(iter_items())
    return find_overlap(path, items=index, max_sketches=MAX_SKETCHES, folder=path.parent, on_row=on_row)[0]
