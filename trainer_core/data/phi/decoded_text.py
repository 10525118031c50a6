"""A text as those see it who open it in a browser or a terminal: a second reading beside the one that stands there.

HTML's entities and inline marks, percent-encoding, escape sequences of terminals, stretches that are shown backwards,
and blanks that are letters to Unicode. Decoded once: what is encoded twice stays. Texts without such signs, which are
nearly all, have no second reading and cost nothing.
"""

import html
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SIGNS = "&%<\x1b\u202e\u2800\u3164\uffa0"
_ENCODED = re.compile(
    r"&(?:#\d{1,7};?|#[xX][0-9A-Fa-f]{1,6};?|[A-Za-z][A-Za-z0-9]{1,31};)"
    r"|(?:%[0-9A-Fa-f]{2})+"
    r"|</?(?:a|b|big|bdi|bdo|code|em|font|i|mark|s|small|span|strong|sub|sup|tt|u|wbr)(?:\s[^<>]{0,300})?/?>"
    r"|\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)"
    "|\u202e[^\u202c\\n\u2029]*|[\u2800\u3164\uffa0]"
)
_BACKWARDS = "\u202e"
_BLANKS = {"\u2800": "", "\u3164": " ", "\uffa0": " "}
"""Read the other way round than in the normal form."""

Character = tuple[str, int, int]
"""What is read, and the stretch where it stands."""


@dataclass(frozen=True, slots=True)
class DecodedText:
    text: str
    starts: Sequence[int]
    ends: Sequence[int]
    """Of each character, the stretch of the original that it was written as."""

    def to_original(self, start: int, end: int) -> tuple[int, int]:
        return min(self.starts[start:end]), max(self.ends[start:end])


def decode(text: str) -> DecodedText | None:
    """The second reading of a text that has one."""
    if not any(sign in text for sign in _SIGNS):
        return None
    pieces: list[str] = []
    starts, ends = array("q"), array("q")
    last = 0
    for match in _ENCODED.finditer(text):
        characters = list(_read(match))
        if "".join(character for character, _, _ in characters) == match[0]:
            continue
        pieces += [text[last : match.start()], *(character for character, _, _ in characters)]
        starts.extend((*range(last, match.start()), *(start for _, start, _ in characters)))
        ends.extend((*range(last + 1, match.start() + 1), *(end for _, _, end in characters)))
        last = match.end()
    if not last:
        return None
    starts.extend(range(last, len(text)))
    ends.extend(range(last + 1, len(text) + 1))
    return DecodedText("".join([*pieces, text[last:]]), starts, ends)


def _read(match: re.Match[str]) -> Iterator[Character]:
    found, start, end = match[0], match.start(), match.end()
    match found[0]:
        case "&":
            yield from ((character, start, end) for character in html.unescape(found))
        case "%":
            yield from _read_percents(found, start)
        case sign if sign == _BACKWARDS:
            yield from ((found[index], start + index, start + index + 1) for index in range(len(found) - 1, 0, -1))
        case sign if sign in _BLANKS:
            yield from ((character, start, end) for character in _BLANKS[sign])
        case _:
            return


def _read_percents(found: str, start: int) -> Iterator[Character]:
    """Bytes of UTF-8; others stay as they stand."""
    try:
        decoded = bytes.fromhex(found.replace("%", "")).decode()
    except UnicodeDecodeError:
        yield from ((character, start + index, start + index + 1) for index, character in enumerate(found))
        return
    for character in decoded:
        width = 3 * len(character.encode())
        yield character, start, start + width
        start += width
