"""One answer to one probe, as the checks look at it."""

from dataclasses import dataclass

from trainer_core.safety.probes import Expected, Probe
from trainer_core.safety.reading import Hit, Reading
from trainer_core.safety.rules import RuleSet
from trainer_core.safety.violation import Outcome, Violation


@dataclass(frozen=True, slots=True)
class Case:
    rules: RuleSet
    probe: Probe
    question: Reading
    text: str
    """The answer as the model gave it."""
    answer: Reading
    outcome: Outcome

    def expects(self, *expected: Expected) -> bool:
        return self.probe.expected in expected

    def violate(self, code: str, hit: Hit | tuple[int, int] | None = None, detail: str = "") -> Violation:
        """Without a place it is the whole answer that lacks something."""
        check = self.rules.checks[code]
        start, end = 0, len(self.text)
        if hit is not None:
            found = (hit.start, hit.end) if isinstance(hit, Hit) else hit
            start, end = self.answer.form.to_original(*found)
        explanation = f"{check.explanation} {detail}".strip()
        return Violation(code, check.severity, explanation, start, end)
