"""Numbers that say by their form or check digit what they are."""

import re
from collections.abc import Callable, Iterator

from trainer_core.data.phi import checksums
from trainer_core.data.phi.finding import CHECKED, LABELLED, Finding
from trainer_core.data.phi.windows import Window

_GAP = r"(?:[ \t]?[-. ]|\n-)\s?"
_SSN = re.compile(rf"(?<![\w-])(\d{{3}}){_GAP}(\d{{2}}){_GAP}(\d{{4}})(?![\w-])")
_SPACED_SSN = re.compile(r"(?<!\w)(\d \d \d) ?- ?(\d \d) ?- ?(\d \d \d \d)(?!\w)")
_SSN_LABEL = re.compile(
    r"(?i)\b(?:ssn|ss ?#|social(?:\s+security)?(?:\s+(?:number|no|num|card))?|soc\s?sec|itin|tin)\b[^\n\d]{0,20}\Z"
)
_BARE_SSN = re.compile(r"(?<!\w)(\d{3})(\d{2})(\d{4})(?!\w)")
_CARD = re.compile(r"(?<![\w.+])\d(?:\d|[ \n-]\s?(?=\d)){11,22}(?!\w)")
_CARD_LABEL = re.compile(r"(?i)\b(?:card|visa|mastercard|amex|discover|credit|debit)\b[^\d\n]{0,40}\s?\Z")
_TEN = re.compile(r"(?<![\w.])[12]\d{9}(?!\w)")
_SPACED_TEN = re.compile(r"(?<![\w.])[12](?:[ -]?\d){9}(?!\w)")
_NPI_LABEL = re.compile(r"(?i)\b(?:npi|national\s+provider)\b[^\d\n]{0,24}\s?\Z")
_IBAN = re.compile(r"(?i)(?<![a-z0-9])[a-z]{2}\d{2}(?:[ -]?\s?[a-z0-9]{1,4}){3,8}(?![a-z0-9])")
_DEA = re.compile(r"(?i)(?<![a-z0-9])[abcdefghjklmprstux][a-z9][ -]?\d{7}(?!\w)")
_VIN = re.compile(r"(?i)(?<![a-z0-9])[a-hj-npr-z0-9]{17}(?![a-z0-9])")
_UDI = re.compile(r"\(\s?01\s?\)\s?(\d(?:[ ]?\d){13})(?:\s?\((?:11|17|10|21)\)\s?[\w-]+)*")
_MBI = re.compile(r"(?i)(?<![a-z0-9])[1-9][a-z][a-z0-9]\d[ -]?\s?[a-z][a-z0-9]\d[ -]?\s?[a-z]{2}\d{2}(?![a-z0-9])")


_MIN_DIGITS = 4
_VIN_LENGTH = 17


def find_numbers(text: str, digits: str, window: Window) -> Iterator[Finding]:
    """`digits`: the text with misread digits put right, equally long."""
    if window.num_digits < _MIN_DIGITS and window.end - window.start < _VIN_LENGTH:
        return
    start, end = max(0, window.start - 24), min(len(text), window.end + 24)
    if window.num_digits >= 9:
        yield from _find_ssns(digits, start, end)
        yield from _find_cards(digits, start, end)
        yield from _find_npis(digits, start, end)
    yield from _find_checked(text, start, end)
    for match in _UDI.finditer(digits, start, end):
        if checksums.is_gtin(_strip(match[1])):
            yield Finding(*match.span(), "device", "device.udi", CHECKED)


def _find_ssns(text: str, start: int, end: int) -> Iterator[Finding]:
    for pattern in (_SSN, _SPACED_SSN):
        for match in pattern.finditer(text, start, end):
            if checksums.is_ssn(*(_strip(group) for group in match.groups())):
                yield Finding(*match.span(), "ssn", "ssn.form", LABELLED)
    for match in _BARE_SSN.finditer(text, start, end):
        if _SSN_LABEL.search(text, max(0, match.start() - 40), match.start()):
            yield Finding(*match.span(), "ssn", "ssn.labelled", LABELLED)


def _find_cards(text: str, start: int, end: int) -> Iterator[Finding]:
    for match in _CARD.finditer(text, start, end):
        digits = _strip(match[0])
        if checksums.is_card(digits):
            yield Finding(*match.span(), "card", "card.luhn", CHECKED)
        elif len(digits) >= 12 and _CARD_LABEL.search(text, max(0, match.start() - 60), match.start()):
            yield Finding(*match.span(), "card", "card.labelled", LABELLED)


def _find_npis(text: str, start: int, end: int) -> Iterator[Finding]:
    for match in _TEN.finditer(text, start, end):
        if checksums.is_npi(match[0]):
            yield Finding(*match.span(), "npi", "npi.luhn", CHECKED)
    for match in _SPACED_TEN.finditer(text, start, end):
        if _NPI_LABEL.search(text, max(0, match.start() - 40), match.start()):
            yield Finding(*match.span(), "npi", "npi.labelled", LABELLED)


_CHECKS: tuple[tuple[re.Pattern[str], Callable[[str], bool], str], ...] = (
    (_IBAN, checksums.is_iban, "iban"),
    (_DEA, checksums.is_dea, "dea"),
    (_VIN, checksums.is_vin, "vin"),
    (_MBI, checksums.is_mbi, "health_plan"),
)


def _find_checked(text: str, start: int, end: int) -> Iterator[Finding]:
    for pattern, is_valid, phi_class in _CHECKS:
        for match in pattern.finditer(text, start, end):
            value = _strip(match[0])
            for length in (len(value), *(range(len(value) - 1, 14, -1) if phi_class == "iban" else ())):
                if is_valid(value[:length]):
                    stop = _find_end(text, match.start(), length)
                    yield Finding(match.start(), stop, phi_class, f"{phi_class}.checked", CHECKED)
                    break


def _find_end(text: str, start: int, count: int) -> int:
    """Behind so many letters and digits."""
    index = start
    while count:
        count -= text[index].isalnum()
        index += 1
    return index


def _strip(text: str) -> str:
    return "".join(filter(str.isalnum, text))
