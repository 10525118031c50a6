"""Raw rows held against clean ones: whether every identifier is gone, and every value has one token of its own.

PHI001 an identifier that stands in the clean row as it stood in the raw one. PHI013 one value, two tokens. PHI014 two
values, one token. PHI020 something in an identifier's place that is no placeholder, and a value of the raw rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from json import loads
from pathlib import Path

from trainer_core.data.files import iter_json_rows
from trainer_core.data.phi.fields import iter_texts
from trainer_core.data.phi.file_scan import FileFinding
from trainer_core.data.phi.finding import Finding
from trainer_core.data.phi.ner import NerModel, add_findings
from trainer_core.data.phi.normal_form import normalise
from trainer_core.data.phi.persons import link_names
from trainer_core.data.phi.placeholders import AGE, PERSON, find_placeholders, get_label, list_site_labels
from trainer_core.data.phi.scanner import find_identifiers
from trainer_core.data.phi.site_patterns import SitePattern
from trainer_core.data.phi.values import get_value

Row = Mapping[str, object]

BATCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class _Match:
    """What stands in the clean row where the raw one has a value."""

    label: str
    value: str
    substitute: str
    is_placeholder: bool
    place: FileFinding

    def fail(self, rule: str) -> FileFinding:
        return self.place.model_copy(update={"rule": rule})


@dataclass
class _Scope:
    substitutes: dict[tuple[str, str], str] = field(default_factory=dict)
    """The token of each value."""
    owners: dict[str, dict[str, _Match]] = field(default_factory=dict)
    """Of each token the values, and where it stands for each first."""


def check_pairs(
    pairs: Iterable[tuple[Row, Row]],
    patient_key: str | None = None,
    site_patterns: Sequence[SitePattern] = (),
    ner: NerModel | None = None,
) -> Iterator[FileFinding]:
    """Findings in the clean rows of pairs (raw, clean), counted from 1. A text whose rest was changed is not compared:
    where a model looked beside the rules, `ner` has to look here, too.

    Memory holds the distinct values of patients; without a patient key, of the raw rows for PHI020.
    """
    patients: dict[str, _Scope] = {}
    raw_values: set[tuple[str, str]] = set()
    surrogates: dict[tuple[str, str], _Match] = {}
    for number, (raw, clean) in enumerate(pairs, 1):
        patient = raw.get(patient_key) if patient_key else None
        scope = _Scope() if patient is None else patients.setdefault(_normalise(patient), _Scope())
        for match in _iter_matches(number, raw, clean, site_patterns, ner):
            raw_values.add((match.label, match.value))
            yield from _check_match(match, scope, surrogates)
        if patient is None:
            yield from _find_shared(scope)
    for scope in patients.values():
        yield from _find_shared(scope)
    yield from (match.fail("PHI020") for value, match in surrogates.items() if value in raw_values)


def check_pair_files(
    raw: Path,
    clean: Path,
    patient_key: str | None = None,
    site_patterns: Sequence[SitePattern] = (),
    *,
    ner: NerModel | None = None,
    on_row: Callable[[], object] = lambda: None,
) -> Iterator[FileFinding]:
    """`check_pairs` over a file and what `Replacer.replace_file` made of it. `on_row` is called for every row that is
    read or compared. Raises OSError, and RowError where the patterns take too long.

    Without a patient key, whose scopes may reach over the whole file, PHI020 looks at BATCH_ROWS rows together.
    """
    columns = (patient_key,) if patient_key else ()
    pairs = zip(_iter_rows(raw, columns, on_row), _iter_rows(clean, (), on_row), strict=True)
    if patient_key:
        yield from check_pairs(pairs, patient_key, site_patterns, ner)
        return
    num_before = 0
    while batch := list(islice(pairs, BATCH_ROWS)):
        for finding in check_pairs(_watch(batch, on_row), None, site_patterns, ner):
            yield finding.model_copy(update={"row": num_before + finding.row})
        num_before += len(batch)


def _watch(pairs: Iterable[tuple[Row, Row]], on_row: Callable[[], object]) -> Iterator[tuple[Row, Row]]:
    for pair in pairs:
        on_row()
        yield pair


def _iter_rows(path: Path, columns: Sequence[str], on_row: Callable[[], object]) -> Iterator[Row]:
    for _, line in iter_json_rows(path, columns):
        on_row()
        assert isinstance(line, str)  # Whoever replaced could read it.
        yield loads(line)


def _check_match(match: _Match, scope: _Scope, surrogates: dict[tuple[str, str], _Match]) -> Iterator[FileFinding]:
    if not match.is_placeholder:
        value = get_value(match.label, match.substitute)
        if value == match.value:
            yield match.fail("PHI001")
            return
        surrogates.setdefault((match.label, value), match)
    if match.label == AGE:
        return
    if scope.substitutes.setdefault((match.label, match.value), match.substitute) != match.substitute:
        yield match.fail("PHI013")
    scope.owners.setdefault(match.substitute, {}).setdefault(f"{match.label} {match.value}", match)


def _find_shared(scope: _Scope) -> Iterator[FileFinding]:
    """PHI014, unless the names are those of one person."""
    persons = link_names(value for label, value in scope.substitutes if label == PERSON)
    for matches in scope.owners.values():
        owners: set[tuple[str, str]] = set()
        for match in matches.values():
            owner = (match.label, persons[match.value] if match.label == PERSON else match.value)
            if owners and owner not in owners:
                yield match.fail("PHI014")
            owners.add(owner)


def _iter_matches(
    number: int, raw: Row, clean: Row, site_patterns: Sequence[SitePattern], ner: NerModel | None
) -> Iterator[_Match]:
    raw_texts, clean_texts = list(iter_texts(raw)), list(iter_texts(clean))
    if len(raw_texts) != len(clean_texts):
        return
    fields = {str(index): text.text for index, text in enumerate(raw_texts)}
    whole = {str(index): text.phi_class for index, text in enumerate(raw_texts) if text.phi_class}
    labels = list_site_labels(site_patterns)
    found = add_findings(ner, fields, find_identifiers(fields, site_patterns, whole), labels)
    for index, (raw_text, clean_text) in enumerate(zip(raw_texts, clean_texts, strict=True)):
        findings = found[str(index)]
        ends = {start: end for start, end, _ in find_placeholders(clean_text.text, labels)}
        for finding, start, end in _align(raw_text.text, clean_text.text, findings, ends):
            label = get_label(finding.phi_class)
            value = get_value(label, raw_text.text[finding.start : finding.end])
            place = FileFinding(
                row=number, field=clean_text.path, start=start, end=end, phi_class="placeholder", rule=""
            )
            yield _Match(label, value, clean_text.text[start:end], ends.get(start) == end, place)


def _align(raw: str, clean: str, findings: list[Finding], ends: dict[int, int]) -> list[tuple[Finding, int, int]]:
    """Where in the clean text what replaced each finding stands; nothing, if the texts differ elsewhere too."""
    aligned = []
    at = last = 0
    for index, finding in enumerate(findings):
        between = raw[last : finding.start]
        if not clean.startswith(between, at):
            return []
        start = at + len(between)
        stop = findings[index + 1].start if index + 1 < len(findings) else len(raw)
        rest = raw[finding.end : stop]
        end = ends.get(start)
        if end is None or not clean.startswith(rest, end):
            end = clean.find(rest, start) if rest and index + 1 < len(findings) else len(clean) - len(rest)
        if end < start:
            return []
        aligned.append((finding, start, end))
        at, last = end, finding.end
    return aligned if clean[at:] == raw[last:] else []


def _normalise(patient: object) -> str:
    return " ".join(normalise(str(patient)).text.casefold().split())
