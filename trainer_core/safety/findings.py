"""What a round found: failures as they are recorded, open findings, and the table for the model card. Torch-free."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainer_core.config import AcceptedFinding
from trainer_core.reporting import SafetyFailure, SafetyFinding
from trainer_core.safety.check import Judgement
from trainer_core.safety.failure_file import redact
from trainer_core.safety.probes import Probe
from trainer_core.safety.rules import RuleSet
from trainer_core.safety.summary import CheckSummary, Summary
from trainer_core.safety.violation import Severity

NOT_CHECKED = "not_checked"
"""The check of a finding that says that something could not be judged."""
_ORDER = list(Severity)


def list_failures(
    judged: Iterable[Judgement], probes: Mapping[str, Probe], answers: Mapping[str, Any], summary: Summary
) -> list[SafetyFailure]:
    """The gravest first, of these what the base did not do. Texts are without what the rules for identifiers find."""
    regressions = {(found.probe_id, found.code) for found in summary.regressions}
    failures = [
        failure
        for judgement in judged
        for failure in _describe(judgement, probes[judgement.probe_id], answers[judgement.probe_id], regressions)
    ]
    return sorted(failures, key=lambda one: (_ORDER.index(Severity(one["severity"])), not one["is_regression"]))


def _describe(
    judgement: Judgement, probe: Probe, answer: Any, regressions: set[tuple[str, str]]
) -> Iterator[SafetyFailure]:
    if not judgement.violations:
        return
    question, text = redact(probe.question), redact(answer.text)
    for violation in judgement.violations:
        yield {
            "probe_id": judgement.probe_id,
            "check": violation.code,
            "severity": violation.severity.value,
            "explanation": redact(violation.explanation),
            "outcome": judgement.outcome.value,
            "is_regression": (judgement.probe_id, violation.code) in regressions,
            "question": question,
            "answer": text,
            "answer_sha256": hashlib.sha256(answer.text.encode()).hexdigest(),
            "is_cut": answer.is_cut,
        }


def find_open(
    failures: Iterable[SafetyFailure],
    summary: Summary,
    refused: Mapping[str, str],
    accepted: Iterable[AcceptedFinding],
) -> list[SafetyFinding]:
    """Probes that were not asked, checks that fail more often than the base beyond chance, and critical failures."""
    found = [_build(probe_id, NOT_CHECKED, Severity.HIGH.value, reason) for probe_id, reason in refused.items()]
    found += [
        _build("", check.code, check.severity.value, _compare(check)) for check in summary.checks if check.is_worse
    ]
    found += [
        _build(failure["probe_id"], failure["check"], failure["severity"], failure["explanation"])
        for failure in failures
        if failure["severity"] == Severity.CRITICAL
    ]
    return without_accepted(found, accepted)


def build_failed_round(reason: str, accepted: Iterable[AcceptedFinding]) -> list[SafetyFinding]:
    """The open finding of a round that could not be asked or judged."""
    return without_accepted([_build("", NOT_CHECKED, Severity.CRITICAL.value, reason)], accepted)


def without_accepted(found: Iterable[SafetyFinding], accepted: Iterable[AcceptedFinding]) -> list[SafetyFinding]:
    known = {(one.probe_id, one.check) for one in accepted}
    return [finding for finding in found if (finding["probe_id"], finding["check"]) not in known]


def _build(probe_id: str, check: str, severity: str, explanation: str) -> SafetyFinding:
    return {"probe_id": probe_id, "check": check, "severity": severity, "explanation": explanation}


def _compare(check: CheckSummary) -> str:
    assert check.drift is not None
    return (
        f"Fails on {check.rate:.0%} of {check.num_answers} answers; against the base on the same questions by "
        f"{check.drift.difference:+.0%} (95 % interval {check.drift.lower:+.0%} to {check.drift.upper:+.0%})."
    )


def build_card_table(
    rules: RuleSet, summary: Summary, judged_base: Iterable[Judgement], guard: str | None = None
) -> dict[str, Any]:
    """trainer_core.adapters.facts.SafetySummary: every check that any answer was judged by, passed ones too."""
    base = list(judged_base)
    rows = []
    for check in summary.checks:
        if check.num_answers == 0:
            continue
        judged = [judgement for judgement in base if check.code in judgement.judged]
        rows.append(
            {
                "check": check.code,
                "prompts": check.num_answers,
                "base_prompts": len(judged),
                "base_failures": sum(judgement.fails(check.code) for judgement in judged) if judged else None,
                "adapter_failures": check.num_failures,
                "ci95": [check.lower, check.upper],
            }
        )
    judges = f"{rules.version} ({rules.digest[:12]})" + (f", guard model {guard}" if guard else "")
    return {"rule_set": judges, "rows": rows}
