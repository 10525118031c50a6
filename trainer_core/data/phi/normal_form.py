"""Texts as the rules read them, with the way back to the original offsets.

Invisible characters go, and marks that no letter takes in, such as strokes through digits; full-width and other digits
become ASCII, look-alikes of Latin letters among Latin letters or digits become Latin, and lines end in a line feed,
whatever ended them.
Plain text is its own normal form, which costs nothing.
"""

import re
import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from trainer_core.data.phi.windows import Window

_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e01ef]"
)
_UNSEEN = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]|\r(?=\n)")
"""What goes of ASCII."""
_ODD = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""A cheap look for what goes, and for line ends."""
_LINE_END = re.compile(r"[\x0b\x0c\x1c-\x1f]|\r(?!\n)")
_MARK = re.compile("[\u0300-\u036f\u20d0-\u20ff]")
_DASHES_AND_QUOTES = str.maketrans("‐‑‒–—―−’‘ʼ“”\x85\u2028\u2029\u2800", "-------'''\"\"\n\n\n ")
LOOKALIKES = str.maketrans("АВЕКМНОРСТХІЈаеорсухіјΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "ABEKMHOPCTXIJaeopcyxijABEZHIKMNOPTYXo")
_CLUSTER = re.compile(r"\w[\u0300-\u036f]+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class NormalForm:
    text: str
    offsets: Sequence[int] | None
    """Where each character stood, and the end after the last; None: where it stands now."""

    def to_original(self, start: int, end: int) -> tuple[int, int]:
        if self.offsets is None:
            return start, end
        return self.offsets[start], self._end_of(end)

    def _end_of(self, end: int) -> int:
        """The end of the original character that the last one came from."""
        assert self.offsets is not None
        last = self.offsets[end - 1]
        while end < len(self.offsets) - 1 and self.offsets[end] == last:
            end += 1
        return self.offsets[end]


def find_end(text: str, start: int, end: int) -> int:
    """Without the invisible characters at the end of a stretch."""
    while end > start and (text[end - 1] == "\r" or _INVISIBLE.match(text[end - 1])):
        end -= 1
    return end


def normalise(text: str) -> NormalForm:
    is_odd = _ODD.search(text) is not None
    if is_odd:
        text = _LINE_END.sub("\n", text)
    if text.isascii():
        return _drop_unseen(text) if is_odd and _UNSEEN.search(text) else NormalForm(text, None)
    plain = text.translate(_DASHES_AND_QUOTES)
    if not _is_marked(plain) and plain.translate(LOOKALIKES) == plain and _is_settled(plain):
        return NormalForm(plain, None)
    return _rewrite(plain)


def _drop_unseen(text: str) -> NormalForm:
    offsets = array("q")
    last = 0
    for match in _UNSEEN.finditer(text):
        offsets.extend(range(last, match.start()))
        last = match.end()
    offsets.extend(range(last, len(text) + 1))
    return NormalForm(_UNSEEN.sub("", text), offsets)


def _is_marked(text: str) -> bool:
    return any(pattern.search(text) for pattern in (_INVISIBLE, _MARK, _UNSEEN))


def _is_settled(text: str) -> bool:
    return unicodedata.is_normalized("NFKC", text) and not any(c.isdigit() and c > "\x7f" for c in text)


def _rewrite(text: str) -> NormalForm:
    characters: list[str] = []
    offsets: list[int] = []
    for match in _CLUSTER.finditer(text):
        if _INVISIBLE.match(match[0]) or _UNSEEN.match(text, match.start()):
            continue
        for character in unicodedata.normalize("NFKC", match[0]):
            if _MARK.match(character):
                continue
            characters.append(_to_ascii_digit(character))
            offsets.append(match.start())
    offsets.append(len(text))
    return NormalForm(_replace_lookalikes("".join(characters)), offsets)


def _to_ascii_digit(character: str) -> str:
    return str(unicodedata.decimal(character, character))


def _replace_lookalikes(text: str) -> str:
    """Only beside ASCII: a Russian or Greek word stays what it is."""
    latin = text.translate(LOOKALIKES)
    return "".join(
        twin if twin != own and any(c.isascii() and c.isalnum() for c in text[max(0, i - 1) : i + 2]) else own
        for i, (own, twin) in enumerate(zip(text, latin, strict=True))
    )


_MISREAD = re.compile(
    r"(?<![A-Za-z])(?=[\dOoIlSB]*\d)[\dOoIlSB]{2,}(?![A-Za-z])|(?<![A-Za-z\d])[lIO]\d(?=st|nd|rd|th)"
    r"|(?<![A-Za-z\d])[lI](?=[-/.]\d)|(?<=\+)[lI](?= ?\d)|(?<=\d[-/ .])[lIO](?![A-Za-z])|(?<=[-/])[lIO](?=[-/])"
    r"|(?<=[a-z] )[lI](?=,? \d{4})"
)
_MISREAD_HINT = re.compile(r"\d[OolISB]\b|\d[OolISB]\d|\b[OolISB]+\d|[lI][-/.]\d|\+[lI]|\d[-/ .][lIO]\b|\b[lI],? \d{4}")
_DIGIT_OF = str.maketrans("OoIlSB", "001158")


def may_be_misread(text: str, window: Window) -> bool:
    """A cheap look at what hangs on a number."""
    return _MISREAD_HINT.search(text, max(0, window.start - 2), window.end + 2) is not None


def read_misread_digits(text: str) -> str:
    """As long as the text: letters that scanners take digits for are digits, in groups that have a digit."""
    return _MISREAD.sub(lambda match: match[0].translate(_DIGIT_OF), text)


_ASCII_WORD = re.compile(r"[a-z]+")
_WORD = re.compile(r"[^\W\d_]+")
_NO_LETTERS = {code: " " for code in range(128) if not chr(code).isalpha()}


def list_words(lower: str) -> set[str]:
    """Runs of letters of a text in lower case; beside other letters, those of ASCII alone too.

    Splitting is four times as fast as a pattern that looks for words.
    """
    words = set(lower.translate(_NO_LETTERS).split())
    if not lower.isascii():
        for word in [word for word in words if not word.isascii()]:
            words.update(_WORD.findall(word), _ASCII_WORD.findall(word))
    return words


def to_lower(text: str) -> str:
    """As long as the text."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
