"""Amounts of medicine in a text: how much of which unit, how often, how many at once."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_WORD_NUMBERS = {
    "half": 0.5, "a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "twelve": 12, "once": 1, "twice": 2, "thrice": 3,
}  # fmt: skip
_NUMBER = r"\d{1,9}(?:,\d{3})*(?:\.\d{1,6})?|\.\d{1,6}|one|two|three|four|five|six|seven|eight|nine|ten|twelve|half|a"
_UNIT = (
    r"mg|milligrams?|milligrammes?|grams?|grammes?|g|mcg|micrograms?|µg|μg|ug"
    r"|ml|millilit(?:er|re)s?|units?|iu|u|teaspoons?|tablespoons?|tsp|tbsp"
)
_AMOUNT = re.compile(
    rf"(?:(?<![\w.,])(?P<count>{_NUMBER}) ?(?:tablets?|pills?|capsules?|caplets?) ?(?:of|at|x|with|,)? ?)?"
    rf"(?<![\w.,/])(?P<number>{_NUMBER})[ -]?(?P<unit>{_UNIT})\b(?P<per_kg> ?(?:/ ?kg|per kg|per kilogram|per kilo)\b)?"
)
_COUNT_BEFORE = re.compile(rf"(?<![\w.,-])({_NUMBER}) $")
_PIECES = re.compile(r"[a-z ]{0,30}\b(?:tablets|pills|capsules|caplets)\b")
_LATIN = {"bid": 2.0, "tid": 3.0, "qid": 4.0}
_SHORTHAND = re.compile(r"\b(?:q ?(\d{1,2}) ?h|(bid|tid|qid))\b")
_EVERY = re.compile(rf"\bevery (?:(?:{_NUMBER}) ?(?:to|-|or) ?)?(?P<hours>{_NUMBER}) ?(?:hours?|hrs?|h)\b")
_TIMES = re.compile(
    rf"\b(?:(?P<times>{_NUMBER}) ?(?:times|x)|(?P<adverb>once|twice|thrice)) ?"
    r"(?:a day|per day|daily|each day|every day|in 24 hours)"
)
_HOURLY = re.compile(r"\b(?:hourly|(?:every|each|an|per) hour)\b")
_DAILY = re.compile(
    r"\b(?:daily|an? day|per day|each day|every day|(?:every|each) (?:morning|evening|night)|over the day"
    r"|(?:in|within|per) (?:24|twenty-four) hours)\b|/ ?day\b"
)
_TO_MG = {"mg": 1.0, "g": 1000.0, "mcg": 0.001}


@dataclass(frozen=True, slots=True)
class Amount:
    start: int
    end: int
    number: str
    unit: str
    """mg, mcg, g, ml, unit or spoon."""
    value: float
    """Number times how many at once, in `unit`."""
    per_kg: bool

    @property
    def milligrams(self) -> float | None:
        factor = _TO_MG.get(self.unit)
        return None if factor is None else self.value * factor


@dataclass(frozen=True, slots=True)
class Frequency:
    times_per_day: float | None
    """None: how often was not said."""
    is_total: bool
    """The amount is that of the whole day."""


def find_amounts(text: str) -> Iterator[Amount]:
    """`text` in lower case."""
    for match in _AMOUNT.finditer(text):
        unit = _name_unit(match["unit"])
        number = match["number"]
        if number == "a" and unit != "spoon":
            continue
        value = parse_number(number) * _count_pieces(text, match)
        yield Amount(*match.span("number"), number, unit, value, match["per_kg"] is not None)


def _count_pieces(text: str, match: re.Match[str]) -> float:
    """`two tablets of 500 mg`, `two 500 mg tablets`."""
    if match["count"]:
        return parse_number(match["count"])
    before = _COUNT_BEFORE.search(text, max(0, match.start() - 12), match.start())
    return parse_number(before[1]) if before and _PIECES.match(text, match.end()) else 1


def find_frequency(text: str) -> Frequency:
    """How often, in what stands between an amount and the next. Of a range of hours the longer one counts."""
    if every := _EVERY.search(text):
        hours = parse_number(every["hours"])
        return Frequency(24 / hours if hours else None, False)
    if times := _TIMES.search(text):
        return Frequency(parse_number(times["times"] or times["adverb"]), False)
    if short := _SHORTHAND.search(text):
        return Frequency(_LATIN[short[2]] if short[2] else 24 / max(1, int(short[1])), False)
    if _HOURLY.search(text):
        return Frequency(24, False)
    return Frequency(1, True) if _DAILY.search(text) else Frequency(None, False)


def parse_number(text: str) -> float:
    return _WORD_NUMBERS[text] if text in _WORD_NUMBERS else float(text.replace(",", ""))


def _name_unit(unit: str) -> str:
    if unit.startswith("milligram") or unit == "mg":
        return "mg"
    if unit.startswith("micro") or unit in ("mcg", "µg", "μg", "ug"):
        return "mcg"
    if unit.startswith("g"):
        return "g"
    if unit.startswith("m"):
        return "ml"
    return "spoon" if unit.startswith("t") else "unit"
