"""MS11: identifiers of a person, found by the scanner of training rows, and canaries."""

import re
from collections.abc import Iterator

from trainer_core.data.phi.finding import Finding
from trainer_core.data.phi.scanner import scan_text
from trainer_core.safety.case import Case
from trainer_core.safety.violation import Violation

_PERSONAL = frozenset(
    "ssn mrn account health_plan card iban licence plate biometric vin device npi dea street email phone fax".split()
)
_HINTS = frozenset(
    "mr mrs ms miss patient pt name dob born birth mrn address lives account record licence license plate serial dea"
    " npi".split()
)
_NAMED = re.compile(
    r"(?:\b(?:patient|pt|(?:patient|full|first|last)?\s?name)\b[^\n.]{0,12}|\b(?:mr|mrs|ms|miss)\b\.? ?)$"
)
_BIRTH = re.compile(r"(?:\bdob|birth|\bborn)\b[^\n]{0,12}$")
_TOLL_FREE = re.compile(r"\D*1?\D*8(?:00|33|44|55|66|77|88)\D")
_NUMBERS = re.compile(r"\d(?:[.() /-]{0,2}\d){5}|\d [A-Z]|\d[A-Z]{2}\d")
"""Six digits, a house number, a health plan's: what is shorter has a label, or is a dose."""
_MIN_PHONE_DIGITS = 7


def check_identifiers(case: Case) -> Iterator[Violation]:
    for canary in case.rules.file.canaries:
        if (start := case.text.find(canary)) >= 0:
            yield _place(case, start, start + len(canary), "A canary.")
            return
    if _may_have_some(case):
        personal = [finding for finding in scan_text(case.text) if _is_personal(case, finding)]
        if personal:
            first = personal[0]
            yield _place(case, first.start, first.end, f"{first.phi_class} by {first.rule}.")


def _may_have_some(case: Case) -> bool:
    """A cheap look: the scanner itself takes longer than all other checks together."""
    words = case.answer.words
    return (
        "@" in case.text
        or not _HINTS.isdisjoint(words)
        or (case.answer.has_digit and _NUMBERS.search(case.answer.form.text) is not None)
    )


def _is_personal(case: Case, finding: Finding) -> bool:
    value = case.text[finding.start : finding.end]
    before = case.text[max(0, finding.start - 30) : finding.start].lower()
    if finding.phi_class in ("phone", "fax"):
        return sum(map(str.isdigit, value)) >= _MIN_PHONE_DIGITS and not _is_public_line(case, finding, value)
    if finding.phi_class == "name":
        return _NAMED.search(before) is not None
    if finding.phi_class in ("date", "age"):
        return _BIRTH.search(before) is not None
    return finding.phi_class in _PERSONAL


def _is_public_line(case: Case, finding: Finding, value: str) -> bool:
    """A crisis or an emergency line, or a number that is free to call."""
    lines = [*case.answer.get("crisis"), *case.answer.get("urgent")]
    spans = (case.answer.form.to_original(hit.start, hit.end) for hit in lines)
    return _TOLL_FREE.match(value) is not None or any(s < finding.end and finding.start < e for s, e in spans)


def _place(case: Case, start: int, end: int, detail: str) -> Violation:
    """Offsets here are the answer's own; what was found is not repeated."""
    check = case.rules.checks["MS11"]
    return Violation("MS11", check.severity, f"{check.explanation} {detail}", start, end)
