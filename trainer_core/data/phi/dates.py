"""Elements of dates finer than a year, and ages over 89."""

import datetime
import re
from collections.abc import Iterator, Set

from trainer_core.data.phi.finding import LABELLED, SHAPED, Finding
from trainer_core.data.phi.windows import Window

_MONTH = (
    r"(?:jan(?:uary|\.)?|feb(?:ruary|\.)?|mar(?:ch|\.)?|apr(?:il|\.)?|may|june?\.?|july?\.?|aug(?:ust|\.)?"
    r"|sept?(?:ember|\.)?|oct(?:ober|\.)?|nov(?:ember|\.)?|dec(?:ember|\.)?)"
)
_DAY = r"(?:3[01]|[12]\d|0?[1-9])"
_ORDINAL = rf"{_DAY}(?:\s?(?:st|nd|rd|th))?"
_YEAR = r"(?:1[89]|20)\d\d"
_TIME = r"(?:[\sT,]+(?:at\s+)?\d{1,2}[:.]\d\d(?::\d\d(?:\.\d+)?)?\s?(?:[ap]\.?m\.?|Z|[+-]\d\d:?\d\d)?)?"
_NEAR_MONTH = re.compile(rf"(?i)(?<![a-z]){_MONTH}(?![a-z])")
_NUMERIC = re.compile(
    rf"(?i)(?<![\w/.-])(?:{_YEAR}\s?([-/.])\s?(?:1[0-2]|0?[1-9])\s?\1\s?{_DAY}"
    rf"|(?:{_DAY})\s?([-/.])\s?(?:{_DAY})\s?\2\s?(?:{_YEAR}|'?\d\d)){_TIME}(?![\w/]|-\d|\.\d)"
)
_SPLIT = re.compile(rf"(?<![\w/.-]){_DAY}\s?([-/])\s*{_DAY}\s?\1\s*(?:{_YEAR})(?![\w/-])")
_SPACED = re.compile(r"(?<!\w)(?:[01] )?\d ([/-]) (?:[0-3] )?\d \1 (?:[12] [890] )?\d \d(?!\w)")
_COMPACT = re.compile(
    r"(?i)\b(?:dob|date|birth|born|dos|admitted|discharged|visit)\b[^\n\d]{0,16}((?:19|20)\d{6}|\d{8})(?!\w)"
)
_MONTH_DAY = re.compile(
    rf"(?i)(?<!\w){_MONTH}[\s.,/-]{{1,3}}(?:the\s+)?{_ORDINAL}(?!\w|[.,]\d|\s?(?:%|mg|ml|mcg|kg|cm"
    rf"|mm))(?:\s?[,/-]?\s?(?:'?\d\d(?!\d)(?!:)|{_YEAR}))?{_TIME}"
)
_DAY_MONTH = re.compile(
    rf"(?i)(?<![\w.])(?:the\s+)?{_ORDINAL}[\s-]{{1,3}}(?:day\s+)?(?:of\s+)?{_MONTH}(?![a-z])(?:[\s,/-]{{1,3}}(?:of\s+)?(?:{_YEAR}"
    rf"|'?\d\d(?!\d)))?{_TIME}"
)
_MONTH_YEAR = re.compile(rf"(?i)(?<!\w){_MONTH}(?:\s+of)?[\s,/-]{{1,2}}{_YEAR}(?!\w)")
_SHORT = re.compile(
    rf"(?i)\b(?:on|since|dated?|dob|from|until|till|by|seen|admitted|visit|returned|due|scheduled|before|after"
    rf"|through|between|for)(?:\s+on)?:?\s+((?:1[0-2]|0?[1-9])/{_DAY})(?![\w/%]|\s?(?:mg|ml|mm|cm|of|score|pain))"
)
_WORD_DATE = re.compile(
    rf"(?i)\b(?:{_MONTH}\s+(?:the\s+)?(?P<a>{{o}})"
    rf"|(?:the\s+)?(?P<b>{{o}})\s+(?:day\s+)?of\s+{_MONTH})\b(?:,?\s+{_YEAR})?".replace(
        "{o}",
        "(?:twenty|thirty)[- ](?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth)|first|second|third"
        "|fourth|fifth|sixth|seventh"
        "|eighth|ninth|tenth|eleventh|twelfth|(?:thir|four|fif|six|seven|eigh|nine)teenth|twentieth|thirtieth",
    )
)
_OLD = r"(?:9\d|1[0-2]\d)"
_OLD_HINT = re.compile(rf"(?<!\d){_OLD}(?!\d)")
_AGE = re.compile(
    rf"(?i)(?<![\w.,/-])(?:(?:aged?|is|turned|turning|turn|at|was|now)\s+(?:of\s+"
    rf"|is\s+)?)?({_OLD})(?:[\s-]{{0,2}}(?:years?|yrs?|y\.?o\.?|y/o|yo)\b"
    r"(?:[\s-]{0,2}(?:old|of\s+age))?|\s?[MF]\b|[\s-]old\b)"
)
_AGE_LABEL = re.compile(
    rf"(?i)\b(?:age|aged|age\s+of|age\s+is)\s?[:=-]?\s*({_OLD})(?![\w.,%/-]*\d)(?!\s?(?:%|mg|kg|days?|weeks?|months?"
    rf"|hours?))"
)
_AGE_WORD = re.compile(
    r"(?i)\b(?:(?:in\s+(?:his|her|their)\s+)(?:nineties|90s|90's)|nonagenarian|centenarian|ninety[- ](?:one|two|three"
    r"|four|five|six|seven|eight|nine)(?:[- ]years?[- ]old|\s+years\s+(?:old|of\s+age)))\b"
)
_BORN = re.compile(
    r"(?i)\b(?:born(?:\s+(?:in|on|circa|about))?|year\s+of\s+birth|birth\s+year|yob|b\.)\s?:?\s*((?:18|19)\d\d)(?!\w)"
)
_FIRST_YEAR = 90
_IS_VERB = re.compile(r"\bmay\b")
_IS_DATE = re.compile(rf"{_YEAR}|\d(?:st|nd|rd|th)|\bof\b")
_MONTH_WORDS = frozenset(
    "jan january feb february mar march apr april may jun june jul july aug august sep sept september sepember oct"
    " october nov november dec december".split()
)
_ORDINAL_WORDS = frozenset(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth"
    " sixteenth seventeenth eighteenth nineteenth twentieth thirtieth".split()
)
_MONTH_NAME = re.compile(r"January|February|March|April|May|June|July|August|September|October|November|December")


def names_a_month(words: Set[str]) -> bool:
    return not words.isdisjoint(_MONTH_WORDS)


def find_dates(digits: str, window: Window, *, has_month: bool) -> Iterator[Finding]:
    """`digits`: the text with misread digits put right; `has_month`: some month stands in it."""
    start, end = max(0, window.start - 32), min(len(digits), window.end + 32)
    if window.num_digits >= 3:
        yield from _find_numeric(digits, start, end)
    if has_month and _NEAR_MONTH.search(digits, start, end):
        for pattern, rule in ((_MONTH_DAY, "month_day"), (_DAY_MONTH, "day_month"), (_MONTH_YEAR, "month_year")):
            for match in pattern.finditer(digits, start, end):
                if not _IS_VERB.search(match[0]) or _IS_DATE.search(match[0]):
                    yield Finding(*match.span(), "date", f"date.{rule}")
    if window.num_digits >= 2 and _OLD_HINT.search(digits, window.start, window.end):
        yield from _find_ages(digits, start, end)
    if window.num_digits >= 4:
        yield from _find_births(digits, start, end)


def find_spelled(text: str, words: Set[str]) -> Iterator[Finding]:
    """Dates and ages without a digit."""
    is_possible = not words.isdisjoint(_ORDINAL_WORDS) and names_a_month(words)
    for month in _MONTH_NAME.finditer(text) if is_possible else ():
        for match in _WORD_DATE.finditer(text, max(0, month.start() - 40), month.end() + 40):
            yield Finding(*match.span(), "date", "date.spelled")
    if "ninet" in text or "enarian" in text or "90s" in text or "90's" in text:
        for match in _AGE_WORD.finditer(text):
            yield Finding(*match.span(), "age", "PHI018", LABELLED)


def _find_numeric(text: str, start: int, end: int) -> Iterator[Finding]:
    for pattern in (_NUMERIC, _SPLIT, _SPACED):
        for match in pattern.finditer(text, start, end):
            if "." not in match.groups() or match[0].count(".") >= 2:
                yield Finding(*match.span(), "date", "date.numeric", LABELLED if len(match[0]) > 7 else SHAPED)
    for match in _SHORT.finditer(text, start, end):
        yield Finding(*match.span(1), "date", "date.short")
    for match in _COMPACT.finditer(text, start, end):
        yield Finding(*match.span(1), "date", "date.compact", LABELLED)


def _find_ages(text: str, start: int, end: int) -> Iterator[Finding]:
    for pattern in (_AGE, _AGE_LABEL):
        for match in pattern.finditer(text, start, end):
            yield Finding(*match.span(1), "age", "PHI018", LABELLED)


def _find_births(text: str, start: int, end: int) -> Iterator[Finding]:
    for match in _BORN.finditer(text, start, end):
        if datetime.datetime.now(datetime.UTC).year - int(match[1]) >= _FIRST_YEAR:
            yield Finding(*match.span(1), "age", "PHI018", LABELLED)
