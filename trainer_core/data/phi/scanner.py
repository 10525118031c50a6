"""One record through every rule: normal form, rules, mentions of its names, overlaps, original offsets."""

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace

from trainer_core.data.phi.addresses import find_addresses, find_cities, find_corners, find_hints
from trainer_core.data.phi.dates import find_dates, find_spelled, names_a_month
from trainer_core.data.phi.decoded_text import DecodedText, decode
from trainer_core.data.phi.finding import GUESSED, LABELLED, Finding, resolve, subtract
from trainer_core.data.phi.labelled import CODES, find_code_mentions, find_labelled, find_whole, get_code
from trainer_core.data.phi.listed_names import find_mentions
from trainer_core.data.phi.names import find_names
from trainer_core.data.phi.network import find_ipv4, find_network
from trainer_core.data.phi.normal_form import (
    NormalForm,
    find_end,
    list_words,
    may_be_misread,
    normalise,
    read_misread_digits,
    to_lower,
)
from trainer_core.data.phi.numbers import find_numbers
from trainer_core.data.phi.phones import find_phones
from trainer_core.data.phi.placeholders import (
    blank_out,
    cut_blanks,
    find_faults,
    find_placeholders,
    has_marks,
    list_site_labels,
)
from trainer_core.data.phi.site_patterns import Budget, SitePattern
from trainer_core.data.phi.windows import iter_windows

RULE_SET = "1.4"
"""Changes whenever a rule or a list changes what is found."""

_MIN_DIGITS = 3
_VIN_LENGTH = 17
_SECOND = "\0"
"""Before the name of a field, the same field as it is shown."""


def scan_record(
    fields: Mapping[str, str],
    site_patterns: Sequence[SitePattern] = (),
    whole: Mapping[str, str] | None = None,
) -> dict[str, list[Finding]]:
    """Identifiers and faults of placeholders of each field, in order; arguments as in `find_identifiers`."""
    labels = list_site_labels(site_patterns)
    found = find_identifiers(fields, site_patterns, whole)
    for field, text in fields.items():
        if has_marks(text) and (faults := find_placeholder_faults(text, labels)):
            found[field] = resolve([*faults, *found[field]], text)
    return found


def find_identifiers(
    fields: Mapping[str, str],
    site_patterns: Sequence[SitePattern] = (),
    whole: Mapping[str, str] | None = None,
    budget: Budget | None = None,
) -> dict[str, list[Finding]]:
    """Identifiers of each field, in order; a name or a number found in one field marks its mentions in all.

    `whole`: the class of fields that are an identifier altogether. What is found does not depend on what stands in
    placeholders. `budget`: of a row that is looked at more than once. Raises RowError where the patterns overdraw it.
    """
    decoded = {field: reading for field, text in fields.items() if (reading := decode(text))}
    second = {_SECOND + field: reading.text for field, reading in decoded.items()}
    found = _find_all({**fields, **second}, site_patterns, whole or {}, budget or Budget())
    labels = list_site_labels(site_patterns)
    for field, reading in decoded.items():
        more = _place_decoded(fields[field], reading, found.pop(_SECOND + field), labels)
        found[field] = resolve([*found[field], *more], fields[field])
    return found


def _find_all(
    fields: Mapping[str, str], site_patterns: Sequence[SitePattern], whole: Mapping[str, str], budget: Budget
) -> dict[str, list[Finding]]:
    labels = list_site_labels(site_patterns)
    forms = {field: _blank_out(normalise(text), labels) for field, text in fields.items()}
    found = {field: list(_find(form.text, site_patterns, budget)) for field, form in forms.items()}
    for field, phi_class in whole.items():
        found[field] += find_whole(forms[field].text, phi_class)
    names, sure_names = (_list_names(forms, found, min_rank) for min_rank in (GUESSED, LABELLED))
    codes = _list_codes(forms, found)
    for field, form in forms.items():
        found[field] += find_mentions(form.text, names, sure_names) if names else ()
        found[field] += find_code_mentions(form.text, codes) if codes else ()
    return {field: _finish(fields[field], forms[field], findings) for field, findings in found.items()}


def find_placeholder_faults(text: str, site_labels: Collection[str] = ()) -> list[Finding]:
    form = normalise(text)
    return [_place(text, form, finding) for finding in find_faults(form.text, site_labels)]


def _blank_out(form: NormalForm, site_labels: Collection[str]) -> NormalForm:
    return blank_out(form, find_placeholders(form.text, site_labels)) if has_marks(form.text) else form


def _list_codes(forms: dict[str, NormalForm], found: dict[str, list[Finding]]) -> dict[str, str]:
    """Numbers and codes of the record in their shortest form, and their classes."""
    return {
        code: finding.phi_class
        for field, findings in found.items()
        for finding in findings
        if finding.phi_class in CODES and (code := get_code(forms[field].text[finding.start : finding.end]))
    }


def _list_names(forms: dict[str, NormalForm], found: dict[str, list[Finding]], min_rank: int) -> set[str]:
    return {
        forms[field].text[finding.start : finding.end]
        for field, findings in found.items()
        for finding in findings
        if finding.phi_class == "name" and finding.rank >= min_rank
    }


def scan_text(text: str, site_patterns: Sequence[SitePattern] = ()) -> list[Finding]:
    return scan_record({"text": text}, site_patterns)["text"]


def _find(text: str, site_patterns: Sequence[SitePattern], budget: Budget) -> Iterator[Finding]:
    lower = to_lower(text)
    words = list_words(lower)
    yield from find_network(text, lower, words)
    yield from find_spelled(text, words)
    yield from find_cities(text, lower, words)
    yield from find_corners(text, words)
    yield from find_names(text, lower, words)
    for pattern in site_patterns:
        yield from pattern.find(text, budget)
    yield from _find_in_windows(text, lower, words)


def _find_in_windows(text: str, lower: str, words: Set[str]) -> Iterator[Finding]:
    has_month = names_a_month(words)
    hints = find_hints(words)
    windows = list(iter_windows(text))
    digits = text
    if any(may_be_misread(text, window) for window in windows):
        digits = read_misread_digits(text)
        windows = list(iter_windows(digits))
    for window in windows:
        yield from find_dates(digits, window, has_month=has_month)
        yield from find_addresses(text, lower, window, hints)
        if window.num_digits >= _MIN_DIGITS or window.end - window.start >= _VIN_LENGTH:
            yield from find_labelled(text, window)
            yield from find_ipv4(digits, window)
            yield from find_phones(digits, window)
            yield from find_numbers(text, digits, window)


def _finish(text: str, form: NormalForm, findings: list[Finding]) -> list[Finding]:
    resolved = _join(resolve(dict.fromkeys(findings), form.text), form.text)
    return [_place(text, form, part) for finding in resolved for part in cut_blanks(finding, form.text)]


def _join(findings: list[Finding], text: str) -> list[Finding]:
    """Of names that rules found in parts, each one whole."""
    joined: list[Finding] = []
    for finding in findings:
        last = joined[-1] if joined else None
        if last and last.phi_class == finding.phi_class == "name" and text[last.end : finding.start] in ("", " ", "-"):
            joined[-1] = replace(last, end=finding.end)
        else:
            joined.append(finding)
    return joined


def _place(text: str, form: NormalForm, finding: Finding) -> Finding:
    """In the original text."""
    start, end = form.to_original(finding.start, finding.end)
    return replace(finding, start=start, end=find_end(text, start, end) if form.offsets is not None else end)


def _place_decoded(
    text: str, reading: DecodedText, findings: list[Finding], site_labels: Collection[str]
) -> Iterator[Finding]:
    """In the original text, and in no placeholder of it."""
    taken = [(start, end) for start, end, _ in find_placeholders(text, site_labels)] if has_marks(text) else []
    for finding in findings:
        start, end = reading.to_original(finding.start, finding.end)
        yield from subtract(replace(finding, start=start, end=end), taken)
