"""A file of rows through the rules: one pass, flat memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from trainer_core.data.files import iter_records
from trainer_core.data.formats import RowError
from trainer_core.data.phi.dangling import find_dangling
from trainer_core.data.phi.fields import iter_texts
from trainer_core.data.phi.finding import Finding
from trainer_core.data.phi.ner import NerModel, add_findings
from trainer_core.data.phi.placeholders import find_placeholders, has_marks, list_site_labels
from trainer_core.data.phi.scanner import scan_record
from trainer_core.data.phi.site_patterns import SitePattern


class FileFinding(BaseModel):
    """Where an identifier stands, and what kind it is; never the identifier."""

    row: int
    """A line's number as an editor counts (CSV: where the row begins), in Parquet the row's; from 1."""
    field: str
    start: int
    end: int
    phi_class: str = Field(serialization_alias="class")
    rule: str


class UnreadableRow(BaseModel):
    row: int
    code: str
    message: str


ScannedRow = tuple[int, list[FileFinding] | UnreadableRow]


def scan_file(
    path: Path, site_patterns: Sequence[SitePattern] = (), ner: NerModel | None = None
) -> Iterator[ScannedRow]:
    """Every row with its place and its findings, or why it could not be read.

    `ner` looks beside the rules. Raises OSError where the disk fails, ConfigurationError where the model does.
    """
    conventions: set[str] = set()
    for place, record in iter_records(path, columns=None):
        if isinstance(record, RowError):
            yield place, UnreadableRow(row=place, code=record.code, message=record.message)
            continue
        texts = list(iter_texts(record))
        fields = {text.path: text.text for text in texts}
        whole = {text.path: text.phi_class for text in texts if text.phi_class}
        try:
            found = scan_record(fields, site_patterns, whole)
        except RowError as error:
            yield place, UnreadableRow(row=place, code=error.code, message=error.message)
            continue
        found = add_findings(ner, fields, found, list_site_labels(site_patterns))
        findings = [_place(place, field, finding) for field, findings in found.items() for finding in findings]
        findings += _find_mixed(place, fields, conventions)
        findings += [_place(place, field, finding) for field, finding in find_dangling(record, fields)]
        yield place, findings


def _place(row: int, field: str, finding: Finding) -> FileFinding:
    return FileFinding(
        row=row, field=field, start=finding.start, end=finding.end, phi_class=finding.phi_class, rule=finding.rule
    )


def _find_mixed(row: int, fields: dict[str, str], conventions: set[str]) -> Iterator[FileFinding]:
    """PHI010, where a file's second convention of placeholders, or third, appears first."""
    for field, text in fields.items():
        for start, end, convention in find_placeholders(text) if has_marks(text) else ():
            if convention not in conventions:
                conventions.add(convention)
                if len(conventions) > 1:
                    yield _place(row, field, Finding(start, end, "placeholder", "PHI010"))
