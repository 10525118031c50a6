"""Replacer: identifiers of a file's rows by placeholders, each value by the same one throughout its scope.

A scope is one row; or all rows of one patient, where a field of the rows says whose they are: then a first pass finds
every value, the rows wait in a file, and a second pass writes. Workers only find; one process gives tokens in the order
of the rows, so that the output is the same for any number of workers. Memory holds the distinct values of patients,
and no rows.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TypeVar

from pydantic import BaseModel

from trainer_core.data.files import iter_json_rows
from trainer_core.data.formats import MAX_ROW_BYTES, RowError
from trainer_core.data.new_file import write_new_file
from trainer_core.data.phi.ner import NerModel
from trainer_core.data.phi.placeholders import AGE
from trainer_core.data.phi.planning_pool import NumberedLine, NumberedPlan, open_planners, refuse_row
from trainer_core.data.phi.row_plan import Planner, RowPlan, Slot
from trainer_core.data.phi.scanner import RULE_SET
from trainer_core.data.phi.site_patterns import SitePattern
from trainer_core.data.phi.strategy import Strategy
from trainer_core.data.phi.tokens import Value, assign_tokens
from trainer_core.data.phi.vault import Keyring, VaultEntry
from trainer_core.errors import ConfigurationError, DataError

SaveEntry = Callable[[VaultEntry], object]
Item = TypeVar("Item")


class ReplacementReport(BaseModel):
    """What was done, in numbers; never a value."""

    rows: int = 0
    changed_rows: int = 0
    replaced: dict[str, int] = {}
    """Places by class."""
    tokens: int = 0
    """New ones, each counted once in its scope."""
    strategy: Strategy
    rule_set: str = RULE_SET
    key_version: int | None = None
    """Of the key that made tokens or wrote the vault."""


@dataclass
class _Scope:
    """The values of a patient, or of a row, and their tokens."""

    name: str
    values: dict[Value, None] = field(default_factory=dict)
    taken: set[tuple[str, int]] = field(default_factory=set)
    tokens: dict[Value, str] = field(default_factory=dict)
    saved: set[tuple[Value, str]] = field(default_factory=set)

    def add(self, plan: RowPlan) -> None:
        self.values |= {(slot.label, slot.value): None for slot in _list_slots(plan)}
        self.taken |= plan.numbers


class Replacer:
    """What is replaced, and how. Raises ConfigurationError where a key is missing."""

    def __init__(
        self,
        strategy: Strategy = Strategy.SAFE_HARBOR,
        *,
        site_patterns: Sequence[SitePattern] = (),
        patient_key: str | None = None,
        keyring: Keyring | None = None,
        num_workers: int = 1,
        ner: NerModel | None = None,
    ) -> None:
        """`patient_key`: a field of the rows; all rows with one value in it share their tokens.

        `keyring`: needed for `expert_determination`, and for a vault. More than one worker cannot be had in a process
        that must have no children, such as Celery's. `ner`, entered, looks beside the rules.
        """
        if strategy is Strategy.EXPERT_DETERMINATION and keyring is None:
            raise _refuse_without_key(f"The strategy {strategy} makes tokens with a key")
        self._strategy = strategy
        self._patient_key = patient_key
        self._keyring = keyring
        self._token_keyring = keyring if strategy is Strategy.EXPERT_DETERMINATION else None
        self._planner = Planner(site_patterns, patient_key, ner)
        self._num_workers = num_workers

    def replace_file(
        self, path: Path, out: Path, *, vault: Path | None = None, on_row: Callable[[], object] = lambda: None
    ) -> ReplacementReport:
        """Write `out` as JSONL, and the vault's entries: both whole, or neither. `on_row` is called for every row, when
        it is read and when it is written.

        Raises DataError with the row that cannot be read, ConfigurationError, and OSError: FileExistsError where `out`
        is there already.
        """
        report = self.build_report()
        columns = (self._patient_key,) if self._patient_key else ()
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(write_new_file(out))
            entries = stack.enter_context(write_new_file(vault, 0o600)) if vault else None

            def save(entry: VaultEntry) -> None:
                assert entries is not None
                entries.write(entry.model_dump_json().encode() + b"\n")

            rows = _watch(iter_json_rows(path, columns), on_row)
            for line in _watch(self.iter_lines(rows, report, save if entries else None, out.parent), on_row):
                file.write(line.encode())
            if not report.rows:
                raise DataError("no_rows", "The file holds no rows", remedy="Send a file with rows.")
            file.flush()  # What does not fit any more is to be told before the vault gets its name.
        return report

    def replace_rows(
        self, rows: Sequence[Mapping[str, object]], save_entry: SaveEntry | None = None
    ) -> tuple[list[dict[str, object]], ReplacementReport]:
        """Rows in memory; places are counted from 1."""
        lines = [dumps(row, ensure_ascii=False) for row in rows]
        report = self.build_report()
        replaced = self.iter_lines(enumerate(lines, 1), report, save_entry)
        return [loads(line) for line in replaced], report

    def build_report(self) -> ReplacementReport:
        return ReplacementReport(strategy=self._strategy, key_version=self._keyring.version if self._keyring else None)

    def iter_lines(
        self,
        rows: Iterable[tuple[int, str | RowError]],
        report: ReplacementReport,
        save_entry: SaveEntry | None = None,
        scratch: Path | None = None,
    ) -> Iterator[str]:
        """Each row, a line of JSON, with its identifiers replaced; every other character stays.

        `report` is filled, and `save_entry` called with each new value of a scope. `scratch`: where rows wait in a file
        without a name until all values of their patients are known.
        """
        if save_entry and self._keyring is None:
            raise _refuse_without_key("A vault is written with a key")
        with open_planners(self._planner, self._num_workers) as plan_rows, TemporaryFile(dir=scratch) as waiting:
            plans = plan_rows(_list_lines(rows))
            patients: dict[str | None, _Scope] = {}
            if self._patient_key:
                patients = self._gather(plans, waiting, report)
                plans = _load_plans(waiting)
            everything = _Scope("")
            for place, plan in plans:
                scope = patients.get(plan.patient) or self._assign(_Scope(f"row:{place}"), plan, report)
                yield self._write(place, plan, scope, report)
                if save_entry:
                    saved = everything if self._token_keyring else scope
                    for entry in self._build_entries(plan, scope, saved):
                        save_entry(entry)

    def _gather(
        self, plans: Iterator[NumberedPlan], waiting: IO[bytes], report: ReplacementReport
    ) -> dict[str | None, _Scope]:
        """Every patient's values from all rows; the rows themselves wait on the disk."""
        patients: dict[str | None, _Scope] = {}
        for place, plan in plans:
            pickle.dump((place, plan), waiting)
            if plan.patient is not None:
                patients.setdefault(plan.patient, _Scope(self._name_scope(plan.patient))).add(plan)
        if waiting.tell() and not patients:
            raise DataError(
                "patient_key_unknown",
                f"No row has a value in the field {self._patient_key!r}",
                remedy="Name a field that stands in the rows, beside their texts.",
            )
        waiting.seek(0)
        for scope in patients.values():
            self._give_tokens(scope, report)
        return patients

    def _name_scope(self, patient: str) -> str:
        return self._keyring.hide_scope(patient) if self._keyring else ""

    def _assign(self, scope: _Scope, plan: RowPlan, report: ReplacementReport) -> _Scope:
        scope.add(plan)
        self._give_tokens(scope, report)
        return scope

    def _give_tokens(self, scope: _Scope, report: ReplacementReport) -> None:
        scope.tokens = assign_tokens(scope.values, scope.taken, self._token_keyring)
        scope.values, scope.taken = {}, set()
        report.tokens += len(set(scope.tokens.values()))

    def _write(self, place: int, plan: RowPlan, scope: _Scope, report: ReplacementReport) -> str:
        slots = _list_slots(plan)
        report.rows += 1
        report.changed_rows += bool(slots)
        for slot in slots:
            report.replaced[slot.phi_class] = report.replaced.get(slot.phi_class, 0) + 1
        line = "".join(p if isinstance(p, str) else scope.tokens[p.label, p.value] for p in plan.pieces)
        if slots and len(line) * 4 > MAX_ROW_BYTES and len(line.encode()) > MAX_ROW_BYTES:
            raise refuse_row(place, "row_too_large", f"With tokens it is longer than {MAX_ROW_BYTES:,} bytes.")
        return line

    def _build_entries(self, plan: RowPlan, scope: _Scope, saved: _Scope) -> Iterator[VaultEntry]:
        assert self._keyring is not None
        for slot in _list_slots(plan):
            token = scope.tokens[slot.label, slot.value]
            new = ((slot.label, slot.value), token)
            if slot.label != AGE and new not in saved.saved:
                saved.saved.add(new)
                yield self._keyring.encrypt(
                    scope=saved.name, label=slot.label, token=token, value=slot.value, original=slot.original
                )


def _watch(items: Iterable[Item], on_item: Callable[[], object]) -> Iterator[Item]:
    for item in items:
        on_item()
        yield item


def _list_slots(plan: RowPlan) -> list[Slot]:
    return [piece for piece in plan.pieces if not isinstance(piece, str)]


def _load_plans(waiting: IO[bytes]) -> Iterator[NumberedPlan]:
    with contextlib.suppress(EOFError):
        while True:
            yield pickle.load(waiting)


def _list_lines(rows: Iterable[tuple[int, str | RowError]]) -> Iterator[NumberedLine]:
    for place, row in rows:
        if isinstance(row, RowError):
            raise refuse_row(place, row.code, row.message)
        yield place, row


def _refuse_without_key(message: str) -> ConfigurationError:
    return ConfigurationError("vault_key_missing", message, remedy="Make one: medtune vault key FILE.")
