"""What of one row is to be replaced: found, looked at again without it, until nothing more is found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trainer_core.data.formats import RowError
from trainer_core.data.phi.fields import Pairs, Text, iter_texts
from trainer_core.data.phi.finding import GUESSED, Finding, resolve
from trainer_core.data.phi.json_text import Edit, edit_row, parse_row
from trainer_core.data.phi.ner import NerModel, add_findings
from trainer_core.data.phi.normal_form import normalise
from trainer_core.data.phi.placeholders import (
    AGE,
    OVER_89,
    get_label,
    has_marks,
    list_numbers,
    list_site_labels,
)
from trainer_core.data.phi.scanner import find_identifiers, find_placeholder_faults
from trainer_core.data.phi.site_patterns import Budget, SitePattern
from trainer_core.data.phi.values import get_value

_MAX_ROUNDS = 20
_YEAR_DIGITS = 4


class Slot(NamedTuple):
    """A place for a token. `value` is what makes two slots the same; `original` what stood there."""

    label: str
    value: str
    original: str
    phi_class: str


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One row cut into what stays and what goes."""

    pieces: list[str | Slot]
    numbers: frozenset[tuple[str, int]]
    """What is taken by tokens that the row has already."""
    patient: str | None = None
    """The value of the patient key, in one form; None without it."""


class Planner:
    """Plans rows; knows no other row, so that any process may plan any."""

    def __init__(
        self, site_patterns: Sequence[SitePattern] = (), patient_key: str | None = None, ner: NerModel | None = None
    ) -> None:
        """`ner` looks beside the rules, once it is entered."""
        self.ner = ner
        self._site_patterns = site_patterns
        self._site_labels = list_site_labels(site_patterns)
        self._patient_key = patient_key

    def plan(self, line: str) -> RowPlan:
        """`line`: an object of JSON. Raises RowError."""
        record = parse_row(line)
        texts = [self._mark_key(text) for text in iter_texts(record)]
        edits = self._find_edits(texts)
        has_any = any(edits)
        numbers = _list_all_numbers(texts) if has_any or self._patient_key else frozenset()
        return RowPlan(edit_row(line, edits) if has_any else [line], numbers, self._find_patient(record))

    def _mark_key(self, text: Text) -> Text:
        """The patient key is an identifier, whatever it looks like."""
        if self._patient_key is None or text.path != self._patient_key:
            return text
        return text._replace(phi_class="mrn" if any(map(str.isdigit, text.text)) else "name")

    def _find_patient(self, record: Pairs) -> str | None:
        values = [value for key, value in record if key == self._patient_key]
        if not values or isinstance(values[-1], bool | dict | list | None):
            return None
        return " ".join(normalise(str(values[-1])).text.casefold().split()) or None

    def _find_edits(self, texts: list[Text]) -> list[list[Edit[Slot]]]:
        edits: list[list[Edit[Slot]]] = [[] for _ in texts]
        budget = Budget()
        for _ in range(_MAX_ROUNDS):
            drafts = [_Draft(text.text, done) for text, done in zip(texts, edits, strict=True)]
            new = self._find_new(texts, drafts, budget)
            if not any(new):
                return edits
            edits = [sorted([*done, *more]) for done, more in zip(edits, new, strict=True)]
        raise RowError("does_not_settle", "Replacing identifiers goes on making others: leave the row out.")

    def _find_new(self, texts: list[Text], drafts: "list[_Draft]", budget: Budget) -> list[list[Edit[Slot]]]:
        fields = {str(index): draft.text for index, draft in enumerate(drafts)}
        whole = {str(index): text.phi_class for index, text in enumerate(texts) if text.phi_class}
        found = find_identifiers(fields, self._site_patterns, whole, budget)
        found = add_findings(self.ner, fields, found, self._site_labels)
        return [
            [_build_edit(draft, finding) for finding in self._add_halves(draft.text, found[str(index)])]
            for index, draft in enumerate(drafts)
        ]

    def _add_halves(self, text: str, findings: list[Finding]) -> list[Finding]:
        """The other half of a replaced name is a name too."""
        faults = find_placeholder_faults(text, self._site_labels) if has_marks(text) else []
        halves = [Finding(f.start, f.end, "name", f.rule, GUESSED) for f in faults if f.rule == "PHI016"]
        return resolve([*findings, *halves], text) if halves else findings


class _Draft:
    """A text with a token of no number in each place that is found already."""

    def __init__(self, original: str, edits: list[Edit[Slot]]) -> None:
        self.original = original
        pieces: list[str] = []
        self._shifts: list[tuple[int, int]] = [(0, 0)]
        length = last = 0
        for start, end, slot in edits:
            token = OVER_89 if slot.label == AGE else f"[{slot.label}_0]"
            pieces += [original[last:start], token]
            length += start - last + len(token)
            last = end
            self._shifts.append((length, end - length))
        self.text = "".join([*pieces, original[last:]])

    def to_original(self, start: int, end: int) -> tuple[int, int]:
        """Of a stretch that has no token in it."""
        shift = next(shift for begin, shift in reversed(self._shifts) if begin <= start)
        return start + shift, end + shift


def _build_edit(draft: _Draft, finding: Finding) -> Edit[Slot]:
    start, end = draft.to_original(finding.start, finding.end)
    original = draft.original[start:end]
    label = get_label(finding.phi_class)
    if label == AGE and sum(map(str.isdigit, original)) >= _YEAR_DIGITS:
        label = "DATE"  # a year of birth, which tells the age
    return Edit(start, end, Slot(label, get_value(label, original), original, finding.phi_class))


def _list_all_numbers(texts: list[Text]) -> frozenset[tuple[str, int]]:
    return frozenset(number for text in texts for number in list_numbers(normalise(text.text).text))
