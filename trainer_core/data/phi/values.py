"""What makes two mentions one value: each class's identifiers in one form, however they were written."""

import hashlib
import re

from trainer_core.data.phi.decoded_text import decode
from trainer_core.data.phi.name_forms import WORD
from trainer_core.data.phi.normal_form import normalise, read_misread_digits
from trainer_core.data.phi.placeholders import PERSON

_ALL_DIGITS = frozenset(("SSN", "PHONE", "CARD", "NPI"))
_WORDS = frozenset(("CITY", "STREET"))
_WITH_MARKS = frozenset(("EMAIL", "URL", "IP", "IMAGE"))
_MAX_CHARACTERS = 200
_MONTHS = {m: n for n, m in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
_MONTH = re.compile(rf"(?:{'|'.join(_MONTHS)})[a-z]*")
_ISO = re.compile(r"(\d{4})[-/.](\d\d?)[-/.](\d\d?)")
_NUMERIC = re.compile(r"(\d\d?)[-/.](\d\d?)[-/.]'?(\d{4}|\d\d)")
_MAX_MONTH = 12


def get_value(label: str, text: str) -> str:
    """Equal for two texts exactly if they are the same identifier to us: letter case, spacing and marks do not count.

    A date that can be read in two ways is not taken for another that is written out.
    """
    reading = decode(text)
    plain = normalise(reading.text if reading else text).text.casefold()
    value = _normalise(label, plain) or re.sub(r"\s+", " ", plain)
    return value if len(value) <= _MAX_CHARACTERS else hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()


def _normalise(label: str, plain: str) -> str:
    if label == PERSON:
        return _get_name(plain)
    if label == "DATE":
        return _get_date(read_misread_digits(plain))
    if label in _WORDS:
        return " ".join(re.findall(r"\w+", plain))
    if label in _WITH_MARKS:
        return _join_address(plain)
    code = "".join(filter(str.isalnum, read_misread_digits(plain) if label in _ALL_DIGITS else plain))
    return _get_phone(code) if label == "PHONE" else code


def _get_name(plain: str) -> str:
    """`Smith, John` is John Smith."""
    plain = re.sub(r"'s\b", "", plain)
    last, comma, first = plain.partition(",")
    return " ".join(WORD.findall(f"{first} {last}" if comma and "," not in first else plain))


def _join_address(plain: str) -> str:
    """Without spaces, and with the signs that somebody spelled."""
    spelled = re.sub(r"\s*(?:\(at\)|\[at\]|\bat\b)\s*", "@", plain) if "@" not in plain else plain
    return re.sub(r"\s+", "", re.sub(r"\s*(?:\(dot\)|\[dot\]|\bdot\b)\s*", ".", spelled))


def _get_phone(code: str) -> str:
    """A number of ten digits is the same with the country's 1 before it."""
    code = re.sub(r"(?<=\d)e?xt?(?:ension)?(?=\d)", "x", code)
    digits, *extension = code.partition("x")
    if len(digits) == 11 and digits[0] == "1":
        digits = digits[1:]
    return digits + "".join(extension)


def _get_date(plain: str) -> str:
    compact = re.sub(r"\s", "", plain)
    if match := _ISO.fullmatch(compact):
        return _join_date(match[1], int(match[2]), int(match[3]))
    if match := _NUMERIC.fullmatch(compact):
        first, second = int(match[1]), int(match[2])
        if first > _MAX_MONTH or second > _MAX_MONTH:
            return _join_date(match[3], min(first, second), max(first, second))
        return f"{first}/{second}/{match[3]}"
    months = _MONTH.findall(plain)
    numbers = re.findall(r"\d+", plain)
    if len(months) == 1 and ":" not in plain and 0 < len(numbers) <= 2:
        return _join_written(_MONTHS[months[0][:3]], numbers)
    return " ".join(re.findall(r"\w+", plain))


def _join_written(month: int, numbers: list[str]) -> str:
    """A month in letters: a number of four digits is the year, else the first is the day."""
    if len(numbers) == 1:
        return _join_date(numbers[0], month, 0) if len(numbers[0]) > 2 else _join_date("", month, int(numbers[0]))
    day, year = sorted(numbers, key=len) if max(map(len, numbers)) > 2 else numbers
    return _join_date(year, month, int(day))


def _join_date(year: str, month: int, day: int) -> str:
    return f"{year}-{month:02}-{day:02}"
