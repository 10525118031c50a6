"""Telephone and fax numbers, of the United States and of other countries."""

import re
from collections.abc import Iterator

from trainer_core.data.phi.finding import LABELLED, SHAPED, Finding
from trainer_core.data.phi.windows import Window

_EXTENSION = r"(?:\s?(?:x|ext\.?|extension|#)\s?\d{1,6})?"
_S = r"[ \t]?[-. \t/]?\s?"
_AMERICAN = re.compile(
    rf"(?i)(?<![\w.-])(?:(?:\+?1|001){_S})?(?:\([2-9]\d\d\)|[2-9]\d\d){_S}[2-9]\d\d{_S}\d{{4}}{_EXTENSION}(?!\w|-\d)"
)
_INTERNATIONAL = re.compile(rf"(?i)(?<!\w)(?:\+|00)\d{{1,3}}(?:{_S}(?:\(0\)|\(?\d{{1,5}}\)?)){{1,6}}{_EXTENSION}(?!\w)")
_NATIONAL = re.compile(r"(?<![\w.,/-])\(?0\d{1,4}\)?(?:[-. /]\d{2,9}){1,5}(?![\w%/]|-\d)")
_GROUPED = re.compile(r"(?<![\w.,/+-])\(?\d{2,4}\)?(?:[ .]\d{2,4}){2,4}(?![\w%/-]|[.,]\d)")
_DASHED = re.compile(r"(?<![\w.,/+-])\(?\d{2,4}\)?-\d{2,4}-\d{2,4}(?:-\d{2,4})?(?![\w%/-]|[.,]\d)")
_LOCAL = re.compile(r"(?<![\w.,/+-])(?:[2-9]\d\d[-. ]\d{4}|\(\d{2,4}\)[ -]?\d{3}[- ]?\d{3,4})(?![\w%/-]|[.,]\d)")
_SPACED = re.compile(r"(?<!\w)\(? ?[2-9](?: \d){2} ?\)? ?[-.]? ?\d(?: \d){2} ?[-.]? ?\d(?: \d){3}(?!\w)")
_ANY = re.compile(rf"(?<![\w.])[+(]?\d(?:[\d()]|[-. /]\s?(?=[\d(])){{5,19}}{_EXTENSION}(?!\w|-\d)", re.IGNORECASE)
_SURE = (_AMERICAN, _INTERNATIONAL, _SPACED)
_LIKELY = (_NATIONAL, _GROUPED, _DASHED, _LOCAL)
_LABEL = re.compile(
    r"(?i)\b(?:(?P<fax>fax|facsimile|telefax|f)|(?:tele)?phone|tel|ph|p|cell(?:ular|phone)?|mobile|mob|pager|beeper"
    r"|contact|call(?:ed|ing)?(?:\s+\w+)?"
    r"|desk|office|home|work|text(?:ed)?(?:\s+\w+)?|dial|reach(?:ed|able)?|hotline|whatsapp|voicemail|answering"
    r"|messages?|callback|registered)\b"
    r"(?:\s+(?:number|no|num|line|at|on|to|is|us|me|him|her|them|back|phone|machine|nr))*[\s.:#=)(-]{0,6}\Z"
)
_LABEL_AFTER = re.compile(r"(?i)[\s,(-]{0,3}(?:(?P<fax>fax)|office|mobile|cell|phone|home|desk|work|tel)\b")
_MIN_DIGITS = 7


def find_phones(digits: str, window: Window) -> Iterator[Finding]:
    """`digits`: the text with misread digits put right."""
    if window.num_digits < _MIN_DIGITS - 1:
        return
    start, end = max(0, window.start - 2), min(len(digits), window.end + 12)
    for rank, patterns in ((LABELLED, (_ANY,)), (SHAPED, _SURE), (SHAPED, _LIKELY)):
        for pattern in patterns:
            for match in pattern.finditer(digits, start, end):
                label = _find_label(digits, *match.span())
                if rank == SHAPED or label:
                    yield from _build(match, label, rank if pattern is _ANY else SHAPED)


def _find_label(text: str, start: int, end: int) -> re.Match[str] | None:
    return _LABEL.search(text, max(0, start - 40), start) or _LABEL_AFTER.match(text, end)


def _build(match: re.Match[str], label: re.Match[str] | None, rank: int) -> Iterator[Finding]:
    if sum(map(str.isdigit, match[0])) >= _MIN_DIGITS - 1:
        phi_class = "fax" if label and label["fax"] else "phone"
        yield Finding(
            *match.span(), phi_class, f"{phi_class}.{'labelled' if label else 'form'}", LABELLED if label else rank
        )
