"""Placeholders that stand for identifiers already: no findings, unless they are broken, mixed or half of a name."""

import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence

from trainer_core.data.phi.finding import CHECKED, Finding, subtract
from trainer_core.data.phi.name_forms import can_be_name, is_strong, names_a_disease
from trainer_core.data.phi.normal_form import NormalForm
from trainer_core.data.phi.site_patterns import SitePattern

DIGEST_LENGTH = 16
"""Hexadecimal digits of a token that a key made: 64 bits."""
_INDEX = rf"(?:\d{{1,3}}|[1-9]\d{{3,5}}|[0-9a-f]{{{DIGEST_LENGTH}}})"
"""Longer numbers are such as people have, and no count."""
CONVENTIONS = {
    "indexed": re.compile(rf"\[[A-Z][A-Z_]{{1,30}}(?:[_-]{_INDEX})?\]"),
    "mimic3": re.compile(r"\[\*\*[^\[\]\n]{0,80}\*\*\]"),
    "mimic4": re.compile(r"(?<![\w_])_{3}(?![\w_])"),
    "asterisks": re.compile(r"(?<![\w*])\*{3,}(?=[\w'.,; ]|$)(?<!\n\*\*\*)(?!\*)"),
}
PERSON = "PATIENT"
AGE = "AGE"
OVER_89 = f"[{AGE}_OVER_89]"
"""What every age over 89 becomes: it is one category, and no index tells two of them apart."""
_LABELS = {"name": PERSON, "fax": "PHONE"}
"""Where a class is not called as its placeholder is. A number has one token, whether somebody phones or faxes it."""
_TYPE = re.compile(
    r"(?:PATIENT|NAME|PERSON|DOCTOR|PHYSICIAN|PROVIDER|DATE|AGE|PHONE|FAX|EMAIL|SSN|MRN|ADDRESS|STREET|CITY|ZIP"
    r"|LOCATION|HOSPITAL|ID|URL|IP|ACCOUNT|DEVICE|LICENSE|LICENCE|CARD|NPI|DEA|VIN"
    r"|PLATE|IBAN|HEALTH_PLAN|BIOMETRIC|IMAGE|ENCODED|ORGANIZATION|ORGANISATION|REDACTED|STAFF|RELATIVE|FAMILY|CLINICIAN"
    r"|MEMBER)(?:_(?:[A-Z]|ONE|TWO|THREE|FIRST|LAST|MIDDLE|FULL|GIVEN|FAMILY|MAIDEN|NAME|NAMES|INITIALS|ID|NUMBER|NUM|NO|CODE"
    r"|DATE|TIME|YEAR|OF|BIRTH|DEATH|ADMISSION|DISCHARGE|VISIT|START|END|OVER|RANGE|HOME|WORK|MOBILE|CELL|OFFICE|PHONE|FAX"
    r"|EMAIL|ADDRESS|STREET|CITY|STATE|ZIP|COUNTRY|COUNTY|UNIT|WARD|DEPARTMENT|LINE|MEMBER|MOTHER|FATHER|PARENT|SON"
    r"|DAUGHTER|CHILD|BROTHER|SISTER|SPOUSE|WIFE|HUSBAND|PARTNER|PLAN|CARD|RECORD|ACCOUNT|SERIAL|LICENSE|PLATE))*"
)
"""What else stands behind a type, such as a name, is said and not replaced."""
_VALUES = re.compile(r"@|(?:\d\D{0,3}){7}")
_ISO_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}")
_INDEXED = re.compile(rf"\[([A-Z][A-Z_]{{1,30}}?)[_-]({_INDEX})\]")
_BRACKETED = re.compile(rf"\[([A-Z][A-Z_]{{1,30}}?)(?:[_-]{_INDEX})?\]")
_NUMBERED = re.compile(r"([A-Z][A-Z_]+)[_-](\d{1,9})(?!\d)")
_UNCLOSED = re.compile(
    rf"\[[A-Z][A-Z_]{{2,30}}_(?!{_INDEX}\])\d+(?![\]\d])"
    rf"|\[[A-Z][A-Z_]{{1,30}}[_-](?!{_INDEX}\])\d+\]"
    r"|\[\*\*(?![^\[\]\n]{0,80}\*\*\])|(?<!\[)\b(?:PATIENT|NAME|PERSON|DOCTOR|DATE"
    r"|PHONE|MRN|SSN)_\d+\]|\[(?:PATIENT|NAME|PERSON|DOCTOR|DATE) ?_? \d+\]"
)
_CAPITALS = r"[A-Z][a-z'’-]+(?:[ -][A-Z][a-z]+)*"
_HALF_BEHIND = re.compile(rf"(?<=\])[ -](?!(?i:\w+ (?:syndrome|disease))\b)({_CAPITALS})(?=\W|$)")
_PEOPLE = r"(?:PATIENT|NAME|PERSON|DOCTOR|PHYSICIAN|PROVIDER|STAFF|RELATIVE)(?:_[A-Z]+)*"
_HALF_BEFORE = re.compile(
    rf"(?<![.!?] )(?<!^)(?<!\n)\b([A-Z][a-z]{{2,}})[ ](?=\[(?:PATIENT|NAME|PERSON|DOCTOR)(?:[_-]{_INDEX})?\])"
)
_PERSON = re.compile(rf"\[{_PEOPLE}(?:[_-]{_INDEX})?\]\Z|\[\*\*[^\[\]\n]*[Nn]ame[^\[\]\n]*\*\*\]\Z")
_BLANK = "\x1e\x00\x1e"
"""Stands for every placeholder while rules look: neither letter nor digit, and no rule reads over it."""


def has_marks(text: str) -> bool:
    return "[" in text or ("_" in text and _has_blank(text)) or ("*" in text and "***" in text)


def _has_blank(text: str) -> bool:
    return "___" in text or "_1]" in text or "_2]" in text


def get_label(phi_class: str) -> str:
    """The word in a class's placeholders; letters only, also for a class of a site."""
    label = re.sub(r"[^A-Z_]", "", _LABELS.get(phi_class, phi_class).upper()).strip("_")
    return label[:30] if len(label) > 1 else "ID"


def list_site_labels(patterns: Iterable[SitePattern]) -> frozenset[str]:
    return frozenset(get_label(pattern.phi_class) for pattern in patterns)


def find_placeholders(text: str, site_labels: Collection[str] = ()) -> list[tuple[int, int, str]]:
    """Start, end and convention of each; only brackets of known types count as placeholders."""
    return sorted(
        (*match.span(), convention)
        for convention, pattern in CONVENTIONS.items()
        for match in pattern.finditer(text)
        if (convention != "indexed" or _is_known(match[0], site_labels))
        and (convention != "mimic3" or not _VALUES.search(_ISO_DATE.sub("", match[0])))
    )


def list_tokens(text: str) -> set[str]:
    """Indexed placeholders of known types, without ages, which say nothing of whose they are."""
    tokens = {match[0] for match in _INDEXED.finditer(text) if _TYPE.fullmatch(match[1])}
    return {token for token in tokens if not token.startswith(f"[{AGE}_")}


def list_numbers(text: str) -> set[tuple[str, int]]:
    """Types with the numbers that stand behind them, in whatever brackets: no new token may be one of them."""
    return {(match[1], int(match[2])) for match in _NUMBERED.finditer(text)}


def find_faults(text: str, site_labels: Collection[str] = ()) -> Iterator[Finding]:
    """PHI011: broken placeholders. PHI012: of no known type. PHI016: names of which one part was replaced."""
    for match in _UNCLOSED.finditer(text):
        yield Finding(*match.span(), "placeholder", "PHI011", CHECKED)
    for match in _BRACKETED.finditer(text):
        if (text[match.end(1)] == "_" or _says_name(match[1])) and not _is_known(match[0], site_labels):
            yield Finding(*match.span(), "placeholder", "PHI012", CHECKED)
    for match in _HALF_BEHIND.finditer(text):
        if _PERSON.search(text, max(0, match.start() - 80), match.start()) and (span := _take_name(text, match)):
            yield Finding(*span, "placeholder", "PHI016", CHECKED)
    for match in _HALF_BEFORE.finditer(text):
        if not _is_sentence(match[1]):
            yield Finding(*match.span(1), "placeholder", "PHI016", CHECKED)


def _says_name(label: str) -> bool:
    """Such as PATIENT_JOHN_SMITH."""
    return any(is_strong(word.lower()) for word in label.split("_")[1:])


def _is_known(placeholder: str, site_labels: Collection[str]) -> bool:
    match = _BRACKETED.fullmatch(placeholder)
    return placeholder == OVER_89 or (
        match is not None and (match[1] in site_labels or _TYPE.fullmatch(match[1]) is not None)
    )


def _take_name(text: str, match: re.Match[str]) -> tuple[int, int] | None:
    """Up to the first word that can be part of no name."""
    end = start = match.start(1)
    for word in re.finditer(r"[^ -]+", match[1]):
        if _is_sentence(word[0]) or names_a_disease(text, start + word.end()):
            break
        end = start + word.end()
    return (start, end) if end > start else None


def _is_sentence(word: str) -> bool:
    return word.lower() in _NO_NAMES or not can_be_name(word)


_NO_NAMES = frozenset(
    "patient mr mrs ms dr prof doctor nurse miss the with and by from for to was is has had his her name dear"
    " presented mother father wife husband son daughter"
    " contact signed attending seen told asked hello hi but or that when if because physician referred sister brother"
    " date dob mrn".split()
)


def blank_out(form: NormalForm, placeholders: Sequence[tuple[int, int, str]]) -> NormalForm:
    """A form in which every placeholder looks the same: what rules find must not depend on a token's text."""
    if not placeholders:
        return form
    offsets = form.offsets if form.offsets is not None else range(len(form.text) + 1)
    pieces: list[str] = []
    places = array("q")
    last = 0
    for start, end, _ in placeholders:
        if start < last:
            continue
        pieces += [form.text[last:start], _BLANK]
        places.extend(offsets[last:start])
        places.extend([offsets[start]] * len(_BLANK))
        last = end
    places.extend(offsets[last:])
    return NormalForm("".join([*pieces, form.text[last:]]), places)


def cut_blanks(finding: Finding, text: str) -> list[Finding]:
    """Without the placeholders that a rule took in with an address or a name."""
    if _BLANK not in text[finding.start : finding.end]:
        return [finding]
    parts = subtract(finding, [match.span() for match in re.finditer(_BLANK, text)])
    return [part for part in parts if any(map(str.isalnum, text[part.start : part.end]))]
