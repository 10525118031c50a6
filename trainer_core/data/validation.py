"""Validation of an uploaded file: one pass, flat memory, findings by line. Torch-free."""

from math import ceil, log2
from pathlib import Path

from pydantic import BaseModel

from trainer_core.data.files import iter_rows
from trainer_core.data.formats import Message, RowError


class Finding(BaseModel):
    """What is wrong with one line; the text never repeats what the row says."""

    line: int
    """1-based; in Parquet the row's number; 0 stands for the whole file."""
    code: str
    message: str
    field: str | None = None


class RowStatistics(BaseModel):
    """Characters of the valid rows, over all messages of a row."""

    characters: int = 0
    response_characters: int = 0
    shortest_row_characters: int | None = None
    longest_row_characters: int = 0
    conversations: int = 0
    """Rows with more than one answer."""
    lengths: dict[int, int] = {}
    """Rows by characters: how many have this many or fewer, and more than the next smaller limit. A limit is a fifth
    above the one before."""

    def add(self, messages: list[Message]) -> None:
        characters = sum(len(message["content"]) for message in messages)
        answers = [len(message["content"]) for message in messages if message["role"] == "assistant"]
        self.characters += characters
        self.response_characters += sum(answers)
        shortest = self.shortest_row_characters
        self.shortest_row_characters = characters if shortest is None else min(shortest, characters)
        self.longest_row_characters = max(self.longest_row_characters, characters)
        self.conversations += len(answers) > 1
        limit = find_length_limit(characters)
        self.lengths[limit] = self.lengths.get(limit, 0) + 1


def find_length_limit(characters: int) -> int:
    """The smallest of 16, 19, 22, 26, 32, ... (four to an octave) that is no less."""
    quarters = max(16, ceil(4 * log2(max(characters, 1))))
    while (limit := int(2 ** (quarters / 4))) < characters:  # Rounded down to whole characters.
        quarters += 1
    return limit


class ValidationReport(BaseModel):
    """What a file holds, and what is wrong with it."""

    rows: int = 0
    valid_rows: int = 0
    num_findings: int = 0
    """All findings; `findings` keeps the first of them."""
    findings: list[Finding] = []
    truncated: bool = False
    """There were more findings than `findings` holds."""
    statistics: RowStatistics = RowStatistics()

    @property
    def ok(self) -> bool:
        return self.num_findings == 0


def validate_file(path: Path, max_findings: int = 100) -> ValidationReport:
    """Check every row of a file. Blank lines are no rows. Raises OSError where the disk fails."""
    report = ValidationReport()
    for place, row in iter_rows(path):
        report.rows += place > 0
        if isinstance(row, RowError):
            finding = Finding(line=place, code=row.code, message=row.message, field=row.field)
            _add_finding(report, finding, max_findings)
        else:
            report.statistics.add(row)
            report.valid_rows += 1
    if report.rows == 0 and report.ok:
        _add_finding(report, Finding(line=0, code="no_rows", message="The file holds no rows."), max_findings)
    return report


def _add_finding(report: ValidationReport, finding: Finding, max_findings: int) -> None:
    report.num_findings += 1
    if len(report.findings) < max_findings:
        report.findings.append(finding)
    else:
        report.truncated = True
