"""One pass over a file's rows, and one over the few of them that met others: what overlaps with what.

Equal rows are told by a hash, near ones by sketches, questions of benchmarks and probes by n-grams. Memory holds about
a kilobyte for each of the first so many different rows, whatever they say. Of later ones 16 bytes wait on the disk:
equal ones among them are found, near ones are not looked for.
"""

import heapq
import struct
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from pathlib import Path

from trainer_core.data.files import iter_rows
from trainer_core.data.formats import RowError
from trainer_core.data.overlap.item_index import ItemIndex
from trainer_core.data.overlap.neighbours import Meetings, Neighbours
from trainer_core.data.overlap.report import MAX_ROWS, Findings, OverlapReport
from trainer_core.data.overlap.row_text import RowText, read_row
from trainer_core.data.overlap.sketches import Sketches
from trainer_core.data.spill import Spill

MAX_FINDINGS = 100

MAX_SKETCHES = 1_000_000
"""So many different rows are compared for what is nearly the same, where nobody says otherwise."""

_LATER = struct.Struct(">QQ")
"""Digest and place."""

PlacedRow = tuple[int, RowText]


class OverlapSearch:
    """Of the rows of one file. Held-out rows come first, then the file's own, then `finish`."""

    def __init__(
        self,
        items: ItemIndex | None = None,
        on_row: Callable[[], None] = lambda: None,
        *,
        duplicates: bool = True,
        max_findings: int = MAX_FINDINGS,
        max_sketches: int | None = None,
        folder: Path | None = None,
    ) -> None:
        """`on_row` is called for every row. Without `duplicates` rows are compared with those held out only. `folder`
        is for what waits on the disk."""
        self.findings = Findings(max_findings)
        self._max_findings = max_findings
        self._max_sketches = MAX_SKETCHES if max_sketches is None else max_sketches
        self._folder = folder
        self._later: Spill | None = None
        self.num_rows = 0
        self.num_unsketched = 0
        self._items = items
        self._on_row = on_row
        self._sketches = Sketches()
        self._places = array("q")
        self._duplicates = duplicates
        self._held_out: dict[int, int] = {}
        self._held_out_questions: set[int] = set()
        self._held_out_name: str | None = None
        self._num_held_out = 0
        self._first: dict[int, int] = {}

    @property
    def near_search_ends_at(self) -> int | None:
        """None: all rows were compared for what is nearly the same."""
        own = self._places[self._num_held_out :]
        return (own[-1] if own else 0) if self.num_unsketched else None

    def hold_out(self, rows: Iterable[PlacedRow], name: str | None) -> None:
        """Rows that validate, of the file with that name; None: of the same file."""
        self._held_out_name = name
        for place, row in rows:
            self._on_row()
            if self._held_out.setdefault(row.digest, place) == place:
                self._held_out_questions.add(row.asked)
                self._sketch(place, row)
        self._num_held_out = len(self._sketches)

    def read(self, rows: Iterable[PlacedRow]) -> None:
        for place, row in rows:
            self._on_row()
            self.num_rows += 1
            for match in self._items.find(row) if self._items else ():
                self.findings.add(match.item.code, place, match.item.source, match.item.row, match.share)
            if (held_out := self._held_out.get(row.digest)) is not None:
                self.findings.add("validation_overlap", place, self._held_out_name, held_out)
            if not self._duplicates:
                if held_out is None and (row.is_long or row.asked in self._held_out_questions):
                    self._sketch(place, row)
            elif (first := self._first.get(row.digest)) is not None:
                self.findings.add("duplicate_row", place, None, first)
            elif len(self._first) < self._max_sketches:
                self._first[row.digest] = place
                self._sketch(place, row)
            else:
                self._put_off(place, row)

    def finish(self) -> None:
        """Compare the rows that are nearly the same as others. A later row is held against earlier ones that stay."""
        self._compare_later()
        self.findings.begin_pass()
        if not self._places:
            return
        meetings = Meetings(self._sketches)
        held_out, staying = Neighbours(meetings), Neighbours(meetings)
        for number in meetings.list_rows():
            self._on_row()
            if number < self._num_held_out:
                held_out.add(number)
                continue
            place = self._places[number]
            near = held_out.find(number)
            if near and not self.findings.has("validation_overlap", place):
                source_row = self._places[near.row]
                self.findings.add("validation_overlap", place, self._held_out_name, source_row, near.similarity)
            if not self._duplicates:
                continue
            if near := staying.find(number):
                self.findings.add("near_duplicate_row", place, None, self._places[near.row], near.similarity)
            else:
                staying.add(number)

    def _sketch(self, place: int, row: RowText) -> None:
        if len(self._sketches) >= self._max_sketches:
            self.num_unsketched += 1
            return
        self._sketches.add(row)
        self._places.append(place)

    def _put_off(self, place: int, row: RowText) -> None:
        if self._later is None:
            self._later = Spill(self._folder)
        self._later.add(_LATER.pack(row.digest, place))

    def _compare_later(self) -> None:
        """The rows that were put off, among themselves: those who wait have no equal among the others."""
        if self._later is None:
            return
        first_found: list[tuple[int, int, list[int], int]] = []
        for _, content in self._later.iter_parts():
            self._on_row()
            groups: dict[int, list[int]] = {}
            for digest, place in _LATER.iter_unpack(content):
                groups.setdefault(digest, []).append(place)
            self.num_unsketched += len(groups)
            found = []
            for first, *others in groups.values():
                if others:
                    self.findings.count_duplicates(others)
                    found.append((others[0], first, others[:MAX_ROWS], len(others)))
            first_found = heapq.nsmallest(self._max_findings, first_found + found)
        for _, first, rows, num_rows in first_found:
            self.findings.keep_duplicates(first, rows, num_rows)


def find_overlap(
    path: Path,
    *,
    validation: Path | None = None,
    items: ItemIndex | None = None,
    max_findings: int = MAX_FINDINGS,
    max_sketches: int | None = None,
    folder: Path | None = None,
    on_row: Callable[[], None] = lambda: None,
) -> tuple[OverlapReport, Set[int]]:
    """What was found in a file, and all rows that it was found in. Raises OSError where the disk fails."""
    search = OverlapSearch(items, on_row, max_findings=max_findings, max_sketches=max_sketches, folder=folder)
    unreadable: list[int] = []
    if validation:
        search.hold_out(iter_texts(validation), validation.name)
    search.read(iter_texts(path, unreadable))
    search.finish()
    report = search.findings.build_report(
        max_findings,
        rows=search.num_rows,
        unreadable_rows=len(unreadable),
        unsketched_rows=search.num_unsketched,
        near_search_ends_at=search.near_search_ends_at,
        compared_with=items.count_sources() if items else {},
    )
    return report, search.findings.list_rows()


def find_validation_overlap(path: Path, validation: Path | Collection[int], max_findings: int = 20) -> OverlapReport:
    """Rows to train on that also validate, the same or nearly: those of a file, or these rows of the same file."""
    search = OverlapSearch(duplicates=False, max_findings=max_findings)
    if isinstance(validation, Path):
        search.hold_out(iter_texts(validation), validation.name)
        search.read(iter_texts(path))
    else:
        held_out = frozenset(validation)
        search.hold_out(iter_texts(path, is_wanted=lambda place: place in held_out), None)
        search.read(iter_texts(path, is_wanted=lambda place: place not in held_out))
    search.finish()
    return search.findings.build_report(
        max_findings,
        rows=search.num_rows,
        unsketched_rows=search.num_unsketched,
        near_search_ends_at=search.near_search_ends_at,
    )


def iter_texts(
    path: Path, unreadable: list[int] | None = None, is_wanted: Callable[[int], bool] = lambda _: True
) -> Iterator[PlacedRow]:
    """The rows that can be read, at places that are wanted; the places of the others are appended."""
    for place, row in iter_rows(path):
        if not is_wanted(place):
            continue
        if not isinstance(row, RowError):
            yield place, read_row(row)
        elif unreadable is not None:
            unreadable.append(place)
