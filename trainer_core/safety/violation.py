"""What a check found wrong with an answer."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Outcome(StrEnum):
    """What an answer did with a request: the three of graded refusal benchmarks."""

    ACCEPT = "accept"
    CAUTION = "caution"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Violation:
    """`start` and `end` count characters of the answer; something that is missing spans the whole answer."""

    code: str
    severity: Severity
    explanation: str
    start: int
    end: int
