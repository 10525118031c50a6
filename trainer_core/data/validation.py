"""Validation of an uploaded JSONL file: one pass, flat memory, findings by line. Torch-free."""

from pathlib import Path

from pydantic import BaseModel

from trainer_core.data.formats import Message, RowError, iter_lines, parse_row


class Finding(BaseModel):
    """What is wrong with one line; the text never repeats what the row says."""

    line: int
    """1-based; 0 stands for the whole file."""
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

    def add(self, messages: list[Message]) -> None:
        characters = sum(len(message["content"]) for message in messages)
        answers = [len(message["content"]) for message in messages if message["role"] == "assistant"]
        self.characters += characters
        self.response_characters += sum(answers)
        shortest = self.shortest_row_characters
        self.shortest_row_characters = characters if shortest is None else min(shortest, characters)
        self.longest_row_characters = max(self.longest_row_characters, characters)
        self.conversations += len(answers) > 1


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


def validate_jsonl(path: Path | str, max_findings: int = 100) -> ValidationReport:
    """Check every row of a file. Blank lines are no rows."""
    report = ValidationReport()
    with Path(path).open("rb") as file:
        for number, line in iter_lines(file):
            report.rows += 1
            try:
                report.statistics.add(parse_row(line))
                report.valid_rows += 1
            except RowError as error:
                finding = Finding(line=number, code=error.code, message=error.message, field=error.field)
                _add_finding(report, finding, max_findings)
    if report.rows == 0:
        _add_finding(report, Finding(line=0, code="no_rows", message="The file holds no rows."), max_findings)
    return report


def _add_finding(report: ValidationReport, finding: Finding, max_findings: int) -> None:
    report.num_findings += 1
    if len(report.findings) < max_findings:
        report.findings.append(finding)
    else:
        report.truncated = True
