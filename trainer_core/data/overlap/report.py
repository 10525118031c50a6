"""OverlapReport: places, sources and similarities, and never what a row says."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel

from trainer_core.data.overlap.row_set import RowSet

Code = Literal["duplicate_row", "near_duplicate_row", "validation_overlap", "benchmark_overlap", "probe_overlap"]
CODES: tuple[Code, ...] = get_args(Code)

MAX_ROWS = 20


class OverlapFinding(BaseModel):
    """All rows that share something with one and the same row, question or probe."""

    code: Code
    rows: list[int]
    """The first twenty of them: a line's number as an editor counts, in Parquet the row's; from 1."""
    num_rows: int
    source: str | None
    """File of the other side, or the probe's id; null: this file."""
    source_row: int | None
    """What they share it with, in the source; of duplicates the row that comes first, and stays."""
    similarity: float
    """The lowest of these rows': 1 for equal ones, estimated for near ones, of a question the share that was found."""


class OverlapReport(BaseModel):
    rows: int = 0
    """Rows that were compared."""
    unreadable_rows: int = 0
    unsketched_rows: int = 0
    """Different rows beyond the first so many: compared for what is equal, and not for what is nearly the same."""
    near_search_ends_at: int | None = None
    """The last row that was compared for what is nearly the same; null: all were."""
    counts: dict[Code, int] = {}
    """Rows by code; a row may count for several."""
    rows_found: int = 0
    """Rows that count for any."""
    num_findings: int = 0
    """All findings; `findings` keeps the first of them, by row."""
    findings: list[OverlapFinding] = []
    truncated: bool = False
    """There were more findings than `findings` holds."""
    compared_with: dict[str, int] = {}
    """Questions by benchmark file, and safety probes."""


Key = tuple[Code, str | None, int | None]


class Findings:
    """As they grow: one for each row, question or probe that something is shared with. Of each code and pass the first
    are kept, and of the others how many there are.
    """

    def __init__(self, max_kept: int) -> None:
        self._max_kept = max_kept
        self._kept: dict[Key, OverlapFinding] = {}
        self._others: set[Key] = set()
        self._num_others = 0
        self._num_kept: Counter[Code] = Counter()
        self._rows: defaultdict[Code, RowSet] = defaultdict(RowSet)

    def begin_pass(self) -> None:
        """From here on rows come from the first again: what is found now may come before what was kept."""
        self._num_kept.clear()

    def add(self, code: Code, row: int, source: str | None, source_row: int | None, similarity: float = 1.0) -> None:
        self._rows[code].add(row)
        key: Key = (code, source, source_row)
        finding = self._kept.get(key)
        if finding is None:
            if key in self._others or not self._has_room(code):
                self._others.add(key)
                return
            finding = self._kept[key] = _build_finding(key)
        _count_row(finding, row, similarity)

    def count_duplicates(self, rows: Iterable[int]) -> None:
        """Rows that are equal to one of which nothing was found: a finding that is counted, and not kept."""
        self._num_others += 1
        for row in rows:
            self._rows["duplicate_row"].add(row)

    def keep_duplicates(self, first: int, rows: Sequence[int], num_rows: int) -> None:
        """One that was counted, with the first of its rows."""
        self._num_others -= 1
        key: Key = ("duplicate_row", None, first)
        self._kept[key] = _build_finding(key).model_copy(update={"rows": list(rows), "num_rows": num_rows})

    def has(self, code: Code, row: int) -> bool:
        return row in self._rows[code]

    def list_rows(self) -> RowSet:
        """Rows with any finding."""
        return RowSet(row for rows in self._rows.values() for row in rows)

    def build_report(self, max_findings: int, **facts: Any) -> OverlapReport:
        findings = sorted(self._kept.values(), key=lambda finding: (finding.rows[0], finding.code))
        num_findings = len(findings) + len(self._others) + self._num_others
        return OverlapReport(
            counts={code: len(self._rows[code]) for code in CODES if self._rows[code]},
            rows_found=len(self.list_rows()),
            num_findings=num_findings,
            findings=findings[:max_findings],
            truncated=num_findings > max_findings,
            **facts,
        )

    def _has_room(self, code: Code) -> bool:
        self._num_kept[code] += 1
        return self._num_kept[code] <= self._max_kept


def _build_finding(key: Key) -> OverlapFinding:
    code, source, source_row = key
    return OverlapFinding(code=code, rows=[], num_rows=0, source=source, source_row=source_row, similarity=1.0)


def _count_row(finding: OverlapFinding, row: int, similarity: float) -> None:
    if len(finding.rows) < MAX_ROWS:
        finding.rows.append(row)
    finding.num_rows += 1
    finding.similarity = min(finding.similarity, round(similarity, 3))
