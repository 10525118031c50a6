"""Geography smaller than a state: streets, boxes, units, cities beside them, and postal codes."""

import functools
import re
from collections.abc import Iterator, Set
from importlib import resources
from typing import NamedTuple

from trainer_core.data.phi.finding import GUESSED, LABELLED, SHAPED, Finding
from trainer_core.data.phi.name_forms import iter_places
from trainer_core.data.phi.name_lists import STOP
from trainer_core.data.phi.windows import Window

_SUFFIX = (
    r"(?:street|str|st|avenue|ave|av|road|rd|drive|dr|lane|ln|boulevard|blvd|court|ct|place|pl|circle|cir|way|terrace"
    r"|ter|parkway|pkwy|highway|hwy"
    r"|trail|trl|square|sq|crescent|cres|close|alley|aly|loop|row|mews|gardens|grove|route|turnpike|crossing|path"
    r"|pike|plaza|point|ridge|run|walk"
    r"|bend|hollow|heights|commons|landing|meadows?|mall|hill|harbor|park|estates?|manor|glen|cove|creek|bypass"
    r"|expressway)"
)
_UPPER = "".join(filter(str.isupper, map(chr, range(0x41, 0x250))))
_WORD = r"[^\W\d_][\w'’.-]*"
_STREET = re.compile(
    rf"(?i)(?<![\w.$%])\d{{1,6}}(?:[ -]?[a-d]\b|-\d+)?(?:\s+\d{{1,5}})?\s+(?:\d{{1,3}}(?:st|nd|rd|th)\s+|(?:[nsew]\.?"
    rf"|[ns][ew]|north|south|east|west)\s+)?"
    rf"(?:(?:{_WORD}[ \t\n]+){{1,3}}?|(?<=[a-z]\s))(?:\d{{1,3}}(?:st|nd|rd|th)\s+)?{_SUFFIX}\b\.?(?:\s+(?:north|south"
    rf"|east|west|[ns][ew])\b)?"
)
_SUFFIX_WORDS = frozenset(re.findall(r"[a-z]+", _SUFFIX.replace("(?:", "").replace("s?", ""))) | {"meadows", "estates"}
_UNIT_WORDS = frozenset("box pobox psc unit postbox postfach apt apartment suite ste flat apo fpo dpo".split())
_SUFFIXED = (
    r"\w{2,}(?:straat|strasse|straße|str|weg|gasse|gata|gatan|vägen|vagen|vegen|vej|veien|gade|katu|kuja|tie|laan|plein"
    r"|allee|stræde|torv|allé|ring|vång|utca|puiestee|damm|platz|hove|braut|vænget|stræti|vegur|terrasse)"
)
_FOREIGN = re.compile(
    rf"(?i)(?<![\w.])(?:\d{{1,6}}\s+)?(?:{_SUFFIXED}|(?:rue|via|avenida|rua|calle|ul|piazza|chemin|viale|corso|strada"
    rf"|passeig|paseo|praça|travessa|carrer|ulica|aleja|(?:avenue|place|boulevard|route)(?= d[eu'’]| la\b))\.?"
    rf"[ ]+(?:{_WORD}[ ]+){{1,4}}?|(?:{_WORD}[ ]+){{1,3}}?(?:utca|út|útja|tér|u\.|tee|gate|street|square|vei|katu"
    rf"|puiestee|náměstí|strasse|straße|terrasse|wei|laan))\s?\d{{1,5}}(?!\w|\.\d)"
)
_BOX = re.compile(
    r"(?i)(?:(?<![\w.$%])\d{1,6}\s+(?=p\.?\s?o))?\b(?:p\.?\s?o\.?\s?box|psc|unit|postbox|postfach|box)\s*#?\s?\d+(?:,?\s+box\s+\d+)?"
)
_MILITARY = re.compile(
    r"(?:\b(?:US[A-Z]{1,3}|us[a-z]{1,3})\s+[^\W\d_]+\s+)?\b(?:APO|FPO|DPO|apo|fpo|dpo)\s+(?:A[AEP]|a[aep])\s+\d{5}"
)
_UNIT = re.compile(r"(?i)\b(?:apt|apartment|suite|ste|flat)\b\.?\s*(?:#\s?)?(?:\d+[a-z]?|[a-z]\d*)\b")
_STATE = (
    r"(?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|P[AR]|RI|S[CD]|T[NX]|UT|V[AT]"
    r"|W[AIVY]"
    r"|(?i:Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|Florida|Georgia|Hawaii|Idaho"
    r"|Illinois|Indiana|Iowa|Kansas"
    r"|Kentucky|Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota|Mississippi|Missouri|Montana|Nebraska"
    r"|Nevada|New\s(?:Hampshire|Jersey|Mexico|York)"
    r"|North\s(?:Carolina|Dakota)|Ohio|Oklahoma|Oregon|Pennsylvania|Rhode\sIsland|South\s(?:Carolina|Dakota)"
    r"|Tennessee|Texas|Utah|Vermont|Virginia"
    r"|Washington|West\sVirginia|Wisconsin|Wyoming))"
)
_CITY_WORDS = r"[^\W\d_a-z][^\W\d_]+(?:[ '-][^\W\d_a-z][^\W\d_]+){0,3}"
_CITY_STATE = re.compile(rf"(?:(?P<city>{_CITY_WORDS})\s?,?\s+)?(?<!\w)(?:{_STATE}|(?i:{_STATE}))[\s,]{{1,3}}\Z")
_ZIP_LABEL = re.compile(
    r"(?i)\b(?:zip(?:\s?code)?|post(?:al)?\s?code|plz)\b\s*(?:is|was|of|:|#|=|-|\.|number"
    r"|in)*\s*(\d(?:\s?\d){2,4}(?:[- ]\d{3,4})?(?:\s?[A-Z]{2}\b)?)(?!\w)"
)
_COUNTRY = (
    r"(?i:Argentina|Australia|Austria|Belgium|Brazil|Canada|Chile|Croatia|Cyprus(?: \(Greek\))?|Czech Republic|Czechia"
    r"|Denmark|Estonia|Finland|France|Germany|Greece|Greenland(?:er)?|Hungary|Iceland|Ireland|Italy|Latvia|Lithuania"
    r"|Luxembourg|Mexico|Netherlands|New Zealand|Norway|Poland|Portugal|Romania|Slovakia|Slovenia|South Africa|Spain"
    r"|Sweden|Switzerland|Tunisia|Turkey|United Kingdom|England|Scotland|Wales|United States|USA|Uruguay)"
)
_TOWN = r"[^\W\d_]+(?:(?:[ '-]|, )[^\W\d_]+){0,4}?"
_TAIL_UNITS = r"(?:[\s,.]+(?i:apt|apartment|suite|ste|unit|flat)\b\.?\s*#?\s?\w+){0,2}[\s,.]+"
_TAIL_ZIP = r"(?:[\s,]+(?P<zip>\d{4,5}(?:-\d{3,4})?)(?![\w-]))?"
_TAILS = (
    re.compile(rf"{_TAIL_UNITS}(?P<city>(?:{_TOWN}[\s,]+(?:(?:[A-Z]{{2,3}}|nan)[\s,]+)?)?{_COUNTRY})(?!\w){_TAIL_ZIP}"),
    re.compile(
        rf"{_TAIL_UNITS}(?P<city>{_CITY_WORDS}(?:[ ](?:[a-z]{{1,3}}[ ])?[^\W\d_a-z][^\W\d_]*){{0,2}}"
        rf"[\s,]+(?:[A-Z]{{1,3}}|nan|\d\d))(?!\w){_TAIL_ZIP}"
    ),
    re.compile(rf"{_TAIL_UNITS}(?P<city>{_CITY_WORDS})?{_TAIL_ZIP}"),
)
"""What follows on a street: with a country, with a state, with neither."""
_UK_CODE = re.compile(r"(?<!\w)[A-Z]{1,2}\d[A-Z\d]?\s\d[ABD-HJLNP-UW-Z]{2}(?!\w)")
_CANADIAN_CODE = re.compile(r"(?<!\w)[ABCEGHJ-NPRSTVXY]\d[A-Z]\s?\d[A-Z]\d(?!\w)")
_CITY_LABEL = re.compile(
    rf"(?i:\b(?:city|town|hometown|county|place\s+of\s+(?:birth|residence)|birthplace)\s*(?::|=|\bis\b"
    rf"|\bof\b)\s*)(?P<labelled>[^\W\d_]+(?:[ '-][^\W\d_a-z][^\W\d_]+){{0,2}})"
    rf"|(?i:\b(?:lives?|living|lived|resid(?:es?|ing)|moved|born|raised|grew\s+up|resident|native"
    rf"|transferred)\s+(?:in|to|from|of|near|at)\s+)(?P<told>{_CITY_WORDS})"
)
_CITY_HINTS = frozenset(
    "city town hometown county place birthplace lives live living lived resides reside residing residence resident"
    " moved born raised grew native transferred".split()
)
_NO_STREET = re.compile(
    r"(?i)^\d+\s+(?:(?:mg|ml|mcg|g|kg|cm|mm|years?|days?|weeks?|months?|hours?|minutes?|percent|of|to|in|and|or|times"
    r"|the|is|was|for|with|per|at)\b)|\b(?:mg|ml|of|the|is|was|were|by|that|which|and|with)\b\s|(?<!["
    r"\sNSEWnsew][NSEWnsew])(?<!St)[.;:!?]\s"
)
_NAMED_IN_LOWER_CASE = re.compile(
    r"(?is)(?:street|avenue|ave|road|rd|drive|lane|ln|blvd|boulevard|st|circle|court|terrace|parkway|place)\.?\Z"
    r"|\A\d\d.*\b(?:way|trail|crescent|mews|plaza|highway|hwy|pkwy|turnpike|expressway)\.?\Z"
)
_REACH = 60
_UNIT_REACH = 40
_MIN_CODE_DIGITS = 4
_ZIP = re.compile(r"(?<![\w.-])\d{5}(?:-\d{4})?(?![\w-])")
_ZIP_HINTS = ("zip", "post", "plz")
_MAX_HOUSE_DIGITS = 12
_PREFIX_DIGITS = 3
_TELLING_WORDS = frozenset(
    "live lives living lived reside resides residing address located office station moved".split()
)
_LEAD_WORDS = frozenset(
    "rue rúa quai via avenida rua calle ul piazza chemin viale corso strada passeig paseo praça travessa carrer ulica"
    " aleja avenue place boulevard route".split()
)
_ENDINGS = tuple(
    "straat strasse straße str weg gasse gata gatan vägen vagen vegen vej veien gade katu kuja tie laan plein allee"
    " stræde torv allé ring vång utca puiestee damm platz út útja tér u. tee gate street square vei náměstí terrasse"
    " wei hove braut vænget stræti vegur".split()
)
_COUNTRY_ZIP = re.compile(rf"(?<![^\W_]){_COUNTRY}[\s,]+(\d{{5}})(?!\w)")
_NUMBER_FIRST = re.compile(
    rf"(?i)(?:\d{{1,6}}\s+)?\d{{1,5}},?\s+(?:(?:rue|rúa)\s+(?:d[eu]s?\s+|de\s+la\s+)?|(?:avenue|boulevard|place|chemin|route|quai"
    rf"|avenida|calle|praça|piazza|viale)\s+(?:d[eu]s?|de\s+la|de\s+los|dos|della)\s+)"
    rf"(?:[dl]['’])?{_WORD}(?:[ -](?-i:[{_UPPER}])[\w’'-]+){{0,2}}(?:\s\d{{1,4}}\b)?"
)
_TOLD = re.compile(
    rf"(?i:\b(?:lives?|living|lived|resid(?:es?|ing)|address|located|office|station|moved)\s+(?:is\s+)?(?:at|on|in|to|is)\s+)"
    rf"(?P<street>(?:\d{{1,6}}\s+)?(?:[{_UPPER}][^\W\d_]*\.?\s(?:(?:d[aeiou]|del|la|u|v|van|von|der|den)\s)?){{1,4}}\d{{1,4}}[a-z]?)\.?\Z"
)
_CORNER = re.compile(
    rf"(?i)(?:the\s+)?corner\s+of\s+(?:[\w.’'-]+\s+){{1,7}}?and\s+(?:\d+\s+)?"
    rf"(?-i:[{_UPPER}])[\w.’'-]+(?:\s(?-i:[{_UPPER}])[\w’'-]+){{0,2}}"
)
_BETWEEN_NUMBERS = re.compile(
    rf"(?<![\w.$])\d{{2,6}} (?:[^\W\d_a-z](?:(?![{_UPPER}])[^\W\d_]){{2,}} ){{1,3}}\d{{1,4}}\.?(?=,|\s*\n|\s*$"
    rf"|\s+(?:Apt|Suite|Ste|St)\b)"
)


class Hints(NamedTuple):
    """What the words of a text leave possible: most texts with numbers have no address."""

    has_suffix: bool
    has_unit: bool
    has_lead: bool
    is_told: bool


def find_hints(words: Set[str]) -> Hints:
    kinds = (_SUFFIX_WORDS, _UNIT_WORDS, _LEAD_WORDS, _TELLING_WORDS)
    return Hints(*(not words.isdisjoint(telling) for telling in kinds))


def find_addresses(text: str, lower: str, window: Window, hints: Hints) -> Iterator[Finding]:
    """`lower`: the text in lower case, equally long."""
    start, end = max(0, window.start - _REACH), min(len(text), window.end + _REACH)
    if hints.has_suffix:
        yield from _find_streets(text, window)
    if hints.has_lead or _may_end_street(lower, window):
        yield from _find_foreign(text, window)
    if hints.has_unit:
        yield from _find_units(text, window)
    yield from _find_unnamed(text, window, hints)
    if window.num_digits >= _MIN_CODE_DIGITS:
        yield from _find_codes(text, start, end)
    if window.num_digits >= _PREFIX_DIGITS:
        yield from _find_labelled_codes(text, start, end)


def _find_unnamed(text: str, window: Window, hints: Hints) -> Iterator[Finding]:
    """Streets of which only what stands around them tells that they are."""
    following = text[window.end : window.end + 2]
    if following[1:].isupper() and (match := _BETWEEN_NUMBERS.match(text, window.start)):
        yield Finding(*match.span(), "street", "street.between_numbers", GUESSED)
        yield from _find_tail(text, match.end())
    if hints.has_lead and following[:1].isspace() and (match := _NUMBER_FIRST.match(text, window.start)):
        yield Finding(*match.span(), "street", "street.number_first")
        yield from _find_tail(text, match.end())
    if hints.is_told and (match := _TOLD.search(text, max(0, window.start - _REACH), window.end)):
        yield Finding(*match.span("street"), "street", "street.told")
        yield from _find_tail(text, match.end())


def _find_units(text: str, window: Window) -> Iterator[Finding]:
    """Boxes and flats."""
    for pattern, rule in ((_BOX, "street.box"), (_UNIT, "street.unit"), (_MILITARY, "street.military")):
        for match in pattern.finditer(text, max(0, window.start - _UNIT_REACH), window.end):
            yield Finding(*match.span(), "street", rule)
            if rule != "street.military":
                yield from _find_tail(text, match.end())


def find_corners(text: str, words: Set[str]) -> Iterator[Finding]:
    """Where two streets meet."""
    for match in _CORNER.finditer(text) if "corner" in words else ():
        yield Finding(*match.span(), "street", "street.corner")


def find_cities(text: str, lower: str, words: Set[str]) -> Iterator[Finding]:
    for word in _CITY_HINTS & words:
        for start, _ in iter_places(lower, word):
            if match := _CITY_LABEL.match(text, start):
                group = "labelled" if match["labelled"] else "told"
                yield Finding(*match.span(group), "city", f"city.{group}", SHAPED if match["labelled"] else GUESSED)


def _find_streets(text: str, window: Window) -> Iterator[Finding]:
    for index in _list_starts(text, window):
        match = _STREET.match(text, index, min(len(text), window.end + 80))
        if match and not _NO_STREET.search(match[0]) and _looks_named(match[0]):
            yield Finding(*match.span(), "street", "street.suffix")
            yield from _find_tail(text, match.end())


def _may_end_street(lower: str, window: Window) -> bool:
    """The word before the number ends as streets do, or letters hang on the number."""
    number = lower[window.start : window.end]
    if number != number.upper():
        return any(ending in number for ending in _ENDINGS)
    return lower[max(0, window.start - 12) : window.start].rstrip().endswith(_ENDINGS)


def _find_foreign(text: str, window: Window) -> Iterator[Finding]:
    if text[window.end : window.end + 1] == "%" or window.num_digits > _MAX_HOUSE_DIGITS:
        return
    for match in _FOREIGN.finditer(text, max(0, window.start - _REACH), window.end):
        if match.end() > window.start:
            yield Finding(*match.span(), "street", "street.foreign")
            yield from _find_tail(text, match.end())


def _list_starts(text: str, window: Window) -> list[int]:
    """Where a house number may begin."""
    stop = min(window.end, window.start + _REACH)
    inner = (i for i in range(window.start + 1, stop) if text[i].isdigit() and text[i - 1].isspace())
    return [window.start, *inner]


def _looks_named(street: str) -> bool:
    """In lower case only with a suffix that is no other word, or behind a longer number seldom is."""
    return any(c.isupper() for c in street) or _NAMED_IN_LOWER_CASE.search(street) is not None


def _find_tail(text: str, start: int) -> Iterator[Finding]:
    """Up to the country, in one finding: who reads `Road, [CITY_1], Norway` knows more than need be."""
    match = next((match for tail in _TAILS if (match := tail.match(text, start))), None)
    if match is None:
        return
    is_told = match["zip"] or match.re is not _TAILS[-1] or match[0].startswith(",")
    if match["city"] and is_told and match["city"].lower() not in STOP:
        yield Finding(*match.span("city"), "city", "city.address")
    if match["zip"]:
        yield Finding(*match.span("zip"), "zip", "zip.address")


def _find_labelled_codes(text: str, start: int, end: int) -> Iterator[Finding]:
    if any(hint in text[start:end].lower() for hint in _ZIP_HINTS):
        for match in _ZIP_LABEL.finditer(text, start, end):
            if (rule := _judge_labelled(match[1])) is not None:
                yield Finding(*match.span(1), "zip", rule, LABELLED)


def _judge_labelled(code: str) -> str | None:
    """Three digits are what Safe Harbor allows to keep, except of areas with few people: PHI019."""
    if len(code) != _PREFIX_DIGITS:
        return "zip.labelled"
    return "PHI019" if code in _load_restricted_prefixes() else None


@functools.cache
def _load_restricted_prefixes() -> frozenset[str]:
    lines = (resources.files(__package__) / "lists" / "restricted_zip3.txt").read_text(encoding="ascii").splitlines()
    return frozenset(prefix for line in lines if not line.startswith("#") for prefix in line.split())


def _find_codes(text: str, start: int, end: int) -> Iterator[Finding]:
    for zip_code in _ZIP.finditer(text, start, end):
        if match := _CITY_STATE.search(text, max(0, zip_code.start() - 50), zip_code.start()):
            yield Finding(*zip_code.span(), "zip", "zip.state", LABELLED)
            if match["city"]:
                yield Finding(*match.span("city"), "city", "city.state")
    for match in _COUNTRY_ZIP.finditer(text, start, end):
        yield Finding(*match.span(1), "zip", "zip.country")
    for pattern, rule in ((_UK_CODE, "zip.uk"), (_CANADIAN_CODE, "zip.canada")):
        for match in pattern.finditer(text, start, end):
            yield Finding(*match.span(), "zip", rule)
