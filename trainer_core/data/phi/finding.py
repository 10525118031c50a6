"""What a rule found, and which of two overlapping findings counts."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace

CHECKED, LABELLED, SHAPED, GUESSED = 3, 2, 1, 0
"""How sure a rule is: a check digit agrees, a label says so, the form says so, it looks like it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A stretch of a text, as Python counts characters; never what stands there."""

    start: int
    end: int
    phi_class: str
    rule: str
    rank: int = SHAPED


def resolve(findings: Iterable[Finding], text: str) -> list[Finding]:
    """Without overlaps, in order: surer before longer before earlier; of a loser stays what the winner leaves open."""
    starts: list[int] = []
    winners: list[Finding] = []
    for finding in sorted(findings, key=lambda f: (-f.rank, f.start - f.end, f.start)):
        first = max(0, bisect_right(starts, finding.start) - 1)
        last = bisect_left(starts, finding.end)
        for part in subtract(finding, [(winner.start, winner.end) for winner in winners[first:last]]):
            if _says_something(part, finding, text):
                place = bisect_left(starts, part.start)
                starts.insert(place, part.start)
                winners.insert(place, part)
    return winners


def subtract(finding: Finding, spans: Iterable[tuple[int, int]]) -> list[Finding]:
    """What these spans, in order and apart, leave of it."""
    parts = []
    start = finding.start
    for span_start, span_end in spans:
        if span_start < finding.end and start < span_end:
            if start < span_start:
                parts.append(replace(finding, start=start, end=span_start))
            start = span_end
    if start == finding.start:
        return [finding]
    return [*parts, replace(finding, start=start)] if start < finding.end else parts


def _says_something(part: Finding, whole: Finding, text: str) -> bool:
    """What is left of a finding counts when it has two letters or digits."""
    left = text[part.start : part.end]
    if part == whole or whole.phi_class != "street":
        return part == whole or sum(map(str.isalnum, left)) > 1
    return whole.rank > GUESSED and any(map(str.isdigit, left))
