"""Numbers and codes that only their label gives away: records, accounts, devices, licences, plates, beneficiaries."""

import re
from collections.abc import Iterator, Mapping

from trainer_core.data.phi.finding import CHECKED, LABELLED, SHAPED, Finding
from trainer_core.data.phi.windows import Window

_NUMBER = r"(?:\s*(?:number|numbers|num|nr|no|id|identifier|code|#|:|\.|=|-|is|was))*"
_LABELS = {
    "mrn": r"mrn|mr\s?\#|mr\s+no|m\.r\.n|medical\s+rec(?:ord)?|med\s?rec|unit\s+(?:number|no)|chart"
    r"|hospital\s+(?:number|no|id)|patient\s+(?:id|identifier|number|no|\#)|pt\s+(?:id|no|\#)"
    r"|record\s+(?:number|no|\#)|accession|encounter|visit\s+(?:number|no|id)|case\s+(?:number|no)|specimen"
    r"|csn|fin|nhs(?:\s+(?:number|no))?|hosp\s?\#|registration\s+(?:number|no)",
    "health_plan": r"mbi|medicare|medicaid|hicn|member|subscriber|beneficiary|policy|health\s+plan|insurance|insured"
    r"|group\s+(?:number|no|id|\#)|plan\s+(?:number|no|id)|payer\s+id",
    "account": r"account|acct|a/c|acc\s+(?:no|\#)|billing|invoice|claim\s+(?:number|no|id|\#)|bank|routing"
    r"|customer\s+(?:number|no|id)|guarantor",
    "device": r"device|serial|s/n|sn|implant|pacemaker|lot|model\s+(?:number|no)|udi|icd\s+serial|pump\s+(?:serial"
    r"|id)|ref\s+(?:no|number)|imei",
    "licence": r"licen[cs]e|lic|certificate|cert|driver'?s?\s+licen[cs]e|dl|passport|dea|badge|permit",
    "plate": r"(?:licen[cs]e\s+)?plate|registration\s+plate|number\s+plate|car\s+(?:tag|reg(?:istration)?)"
    r"|vehicle\s+(?:tag|reg(?:istration)?)|tag\s+(?:number|no)",
    "vin": r"vin|vehicle\s+id(?:entification)?",
    "biometric": r"fingerprint|voice\s?print|retina(?:l)?\s+scan|biometric|iris\s+(?:scan|template)",
}
_PATTERNS = [
    (phi_class, re.compile(rf"(?i)(?<![a-z/])(?:{label}){_NUMBER}(?:\s*\(?(?:number|no|id|mrn)\)?)?[\s:#=(\[-]*\Z"))
    for phi_class, label in _LABELS.items()
]
_STRONG = re.compile(
    r"(?i)(?:#|:|=|\bno\b|\bnumber|\bnum|\bid\b|\bis\b|\bwas\b|mrn|\bmbi\b|\bvin\b|\bfin\b|\bcsn\b|s/n|\bsn\b|hicn"
    r"|imei|plate|serial|accession|acct|\bdl\b|\bdea\b|med\s?rec|nhs|licen[cs]e|passport|chart|account|record|member"
    r"|policy|tag)"
)
_SURE_LABEL = re.compile(r"(?i)mrn|mbi|vin|acct|account|serial|plate|licen|passport|imei|hicn|s/n|csn")
_VALUE = re.compile(r"[A-Za-z0-9]+(?:[-/.][A-Za-z0-9]+)*(?: ?-? ?[A-Z0-9]{2,}(?=[ ,.;)\n]|$)(?<=\d))*")
_SPACED = re.compile(r"(?:[A-Z0-9] ){4,}[A-Z0-9]\b")
_MIN_DIGITS = 3
_REACH = 64
_DOSE = re.compile(
    r"(?i)\s?(?:mg|mcg|ml|g|kg|mm|cm|units?|%|years?|days?|weeks?|months?|hours?|patients|people|cases|percent)\b"
)


def find_labelled(text: str, window: Window) -> Iterator[Finding]:
    if window.num_digits < _MIN_DIGITS:
        return
    start = window.start
    while before := _PREFIX.search(text, max(0, start - 6), start):
        start = before.start()
    for candidate in dict.fromkeys((start, window.start, *_list_inner_starts(text, window))):
        if finding := _match_label(text, candidate):
            yield finding


_PREFIX = re.compile(
    r"(?<![A-Za-z0-9/])(?!NPI|MBI|MRN|SSN|DEA|VIN|DOB|SN\b|ID\b|NO\b|ACCT|FAX|TEL|DL\b|PIN|CSN|FIN|UDI|LOT|IP\b"
    r"|ZIP)[A-Z]{1,4}[ -]\Z"
)
_INNER = re.compile(r"(?<=[:#=])(?=\w)|(?<=[\s(])(?=\w)")


def _list_inner_starts(text: str, window: Window) -> list[int]:
    """Values behind a label that hangs on them, as in `MRN:123456`."""
    return [match.start() for match in _INNER.finditer(text, window.start + 1, min(window.end, window.start + 80))]


def _match_label(text: str, start: int) -> Finding | None:
    value = _SPACED.match(text, start) or _VALUE.match(text, start)
    if value is None or sum(map(str.isdigit, value[0])) < _MIN_DIGITS or _DOSE.match(text, value.end()):
        return None
    for phi_class, pattern in _PATTERNS:
        label = pattern.search(text, max(0, start - _REACH), start)
        if label and _STRONG.search(label[0]) and _is_long_enough(label[0], value[0]):
            return Finding(*value.span(), phi_class, f"{phi_class}.labelled", LABELLED)
    return None


def _is_long_enough(label: str, value: str) -> bool:
    """A plate may be short; what a vague label names may not."""
    return len(value) >= (4 if _SURE_LABEL.search(label) else 5)


CODES = frozenset((*_LABELS, "ssn", "phone", "fax", "card", "iban", "npi", "dea"))
"""Classes of numbers and codes that are the same identifier wherever they stand."""
_CODE = re.compile(r"(?<![\w.])\w+(?:[-./]\w+)*(?!\w)")
_MIN_CODE = 5
_NO_VALUE = frozenset("unknown none null nan na anonymous redacted withheld tbd".split())
_LETTERS = frozenset(("name", "street", "email"))


def get_code(text: str) -> str:
    """Letters and digits of a code, or nothing if it is too short to be known again."""
    code = "".join(filter(str.isalnum, text.lower()))
    return code if len(code) >= _MIN_CODE and any(map(str.isdigit, code)) else ""


def find_code_mentions(text: str, codes: Mapping[str, str]) -> Iterator[Finding]:
    """Where a number of the record stands again without its label."""
    for match in _CODE.finditer(text):
        if phi_class := codes.get(get_code(match[0])):
            yield Finding(*match.span(), phi_class, f"{phi_class}.mention", SHAPED)


def find_whole(text: str, phi_class: str) -> Iterator[Finding]:
    """A field that its key says to be an identifier, unless nothing is written in it."""
    stripped = text.strip()
    has_value = any(map(str.isdigit, text)) or (phi_class in _LETTERS and any(map(str.isalpha, text)))
    if has_value and re.sub(r"\W", "", stripped.lower()) not in _NO_VALUE:
        start = text.index(stripped)
        yield Finding(start, start + len(stripped), phi_class, f"{phi_class}.field", CHECKED)
