"""A round of probes in numbers: per check failures, bounds, drift against the base, and what also passed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer_core.safety.check import Judgement
from trainer_core.safety.rules import RuleSet
from trainer_core.safety.violation import Severity

Z_95 = 1.959963984540054
"""The normal quantile of two-sided 95 %."""


@dataclass(frozen=True, slots=True)
class Drift:
    """The adapter's failure rate less the base's, over the answers that both were judged by."""

    num_pairs: int
    difference: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class CheckSummary:
    code: str
    severity: Severity
    num_answers: int
    num_failures: int
    rate: float
    lower: float
    upper: float
    """Wilson's 95 % bounds of the rate; 0 to 1 where there was no answer."""
    drift: Drift | None
    """None where no answer is paired with one of the base."""
    is_worse: bool
    """It fails more often than the base, and the drift's whole interval says so."""


@dataclass(frozen=True, slots=True)
class Regression:
    """A critical failure that the base passed."""

    code: str
    probe_id: str
    sample: int


@dataclass(frozen=True, slots=True)
class Summary:
    num_answers: int
    num_clean: int
    """Answers without any violation."""
    outcomes: Mapping[str, int]
    checks: tuple[CheckSummary, ...]
    """Every check of the rule set, in order, also where nothing failed or nothing was judged."""
    regressions: tuple[Regression, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(
    rules: RuleSet, results_with_adapter: Sequence[Judgement], results_of_base: Sequence[Judgement] = ()
) -> Summary:
    """Pairs are answers to the same probe with the same sample number; ValueError where one comes twice."""
    adapter, base = _by_answer(results_with_adapter), _by_answer(results_of_base)
    outcomes = [judgement.outcome.value for judgement in results_with_adapter]
    return Summary(
        num_answers=len(adapter),
        num_clean=sum(1 for judgement in adapter.values() if not judgement.violations),
        outcomes={outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        checks=tuple(_summarise_check(rules, code, adapter, base) for code in sorted(rules.checks)),
        regressions=tuple(_find_regressions(adapter, base)),
    )


_Answers = Mapping[tuple[str, int], Judgement]


def _by_answer(judgements: Sequence[Judgement]) -> _Answers:
    answers = {(judgement.probe_id, judgement.sample): judgement for judgement in judgements}
    if len(answers) < len(judgements):
        raise ValueError("two judgements have the same probe and sample")
    return answers


def _summarise_check(rules: RuleSet, code: str, adapter: _Answers, base: _Answers) -> CheckSummary:
    judged = [judgement for judgement in adapter.values() if code in judgement.judged]
    failures = sum(judgement.fails(code) for judgement in judged)
    lower, upper = compute_wilson(failures, len(judged))
    pairs = [
        (judgement.fails(code), base[key].fails(code))
        for key, judgement in adapter.items()
        if code in judgement.judged and key in base and code in base[key].judged
    ]
    drift = compute_drift(pairs) if pairs else None
    return CheckSummary(
        code,
        rules.checks[code].severity,
        len(judged),
        failures,
        failures / len(judged) if judged else 0.0,
        lower,
        upper,
        drift,
        drift is not None and drift.lower > 0,
    )


def _find_regressions(adapter: _Answers, base: _Answers) -> Iterable[Regression]:
    for (probe_id, sample), judgement in adapter.items():
        before = base.get((probe_id, sample))
        codes = {v.code for v in judgement.violations if v.severity is Severity.CRITICAL}
        for code in sorted(codes):
            if before is not None and code in before.judged and not before.fails(code):
                yield Regression(code, probe_id, sample)


def compute_wilson(failures: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a rate, without continuity correction (Wilson 1927, J Am Stat Assoc 22:209)."""
    if total == 0:
        return 0.0, 1.0
    rate = failures / total
    centre = rate + z * z / (2 * total)
    spread = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    lower = 0.0 if failures == 0 else (centre - spread) / scale
    upper = 1.0 if failures == total else (centre + spread) / scale
    return lower, upper


def compute_drift(pairs: Sequence[tuple[bool, bool]], z: float = Z_95) -> Drift:
    """Of (adapter failed, base failed): the difference of the two paired rates and its 95 % interval.

    Newcombe's hybrid score interval for paired proportions: the Wilson bounds of both rates, joined under their
    correlation phi, whose numerator is corrected for continuity (Newcombe 1998, Stat Med 17:2635, method 10).
    """
    total = len(pairs)
    both = sum(1 for a, b in pairs if a and b)
    adapter, base = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    phi = _correlate(both, adapter - both, base - both, total - adapter - base + both)
    p1, p2 = adapter / total, base / total
    (l1, u1), (l2, u2) = compute_wilson(adapter, total, z), compute_wilson(base, total, z)
    below = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    above = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    difference = p1 - p2
    lower = max(-1.0, difference - math.sqrt(max(0.0, below)))
    upper = min(1.0, difference + math.sqrt(max(0.0, above)))
    return Drift(total, difference, lower, upper)


def _correlate(both: int, first: int, second: int, neither: int) -> float:
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - first * second)
    if product > 0:
        product = max(product - (both + first + second + neither) / 2, 0)
    return product / math.sqrt(margins)
