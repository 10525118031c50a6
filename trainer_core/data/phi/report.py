"""What the rules found in a whole file, for people: counts, and the first places."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel

from trainer_core.data.phi.file_scan import FileFinding, UnreadableRow, scan_file
from trainer_core.data.phi.ner import NerModel
from trainer_core.data.phi.scanner import RULE_SET
from trainer_core.data.phi.site_patterns import SitePattern


class PhiReport(BaseModel):
    """Never the identifiers themselves. No finding means: none that this rule set knows."""

    rule_set: str = RULE_SET
    num_findings: int = 0
    """All findings; `findings` keeps the first of them."""
    rows_with_findings: int = 0
    classes: dict[str, int] = {}
    """Findings by class."""
    findings: list[dict[str, str | int]] = []
    """Row, field, start and end in the field's text, class and rule."""
    truncated: bool = False
    """There were more findings than `findings` holds."""
    unreadable_rows: int = 0
    """Rows that could not be scanned."""
    first_unreadable: str | None = None
    """The first of them, and why."""

    def add(self, finding: FileFinding, max_findings: int = 100) -> None:
        self.num_findings += 1
        self.classes[finding.phi_class] = self.classes.get(finding.phi_class, 0) + 1
        if len(self.findings) < max_findings:
            self.findings.append(finding.model_dump(by_alias=True))
        else:
            self.truncated = True


def report_file(
    path: Path,
    site_patterns: Sequence[SitePattern] = (),
    *,
    ner: NerModel | None = None,
    max_findings: int = 100,
    on_row: Callable[[], None] = lambda: None,
) -> PhiReport:
    """`on_row` is called before every row. Raises OSError where the disk fails, ConfigurationError where `ner` does."""
    report = PhiReport()
    for _, found in scan_file(path, site_patterns, ner):
        on_row()
        if isinstance(found, UnreadableRow):
            report.unreadable_rows += 1
            report.first_unreadable = report.first_unreadable or f"Row {found.row}: {found.message} ({found.code})"
            continue
        report.rows_with_findings += bool(found)
        for finding in found:
            report.add(finding, max_findings)
    return report
