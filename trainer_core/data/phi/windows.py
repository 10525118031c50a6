"""Where numbers stand: one pass finds the digits, and only what is around them is looked at closely."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_GROUP = re.compile(r"\d[\w().,/:#+-]*(?:(?:[ \t]?\r?\n[ \t]?|[ \t]{1,2})(?=[\d(+-])[\w().,/:#+-]+)*")
_HANGING = frozenset("+()./:#-_")
_MAX_BEFORE = 40
_MAX_GROUP = 400


class Window(NamedTuple):
    """A number with all that hangs on it: `start` to `end`, and how many digits it has."""

    start: int
    end: int
    num_digits: int


def iter_windows(text: str) -> Iterator[Window]:
    last = 0
    for match in _GROUP.finditer(text):
        start, end = match.span()
        if start < last:
            continue
        first = max(last, start - _MAX_BEFORE)
        while start > first and (text[start - 1].isalnum() or text[start - 1] in _HANGING):
            start -= 1
        last = end
        yield Window(start, end, sum(map(str.isdigit, match[0][:_MAX_GROUP])))
