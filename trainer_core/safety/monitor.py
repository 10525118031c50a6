"""The safety monitor: asks the model in training the probes, with the adapter and without, and judges the answers.

Every rank answers its share of a round; rank 0 judges, writes and reports, and tells the others what is open. A round
that fails is reported as failed: nothing that was not checked passes for safe.
"""

import dataclasses
import datetime
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from trainer_core.adapters.facts import SAFETY_FILE
from trainer_core.config import AcceptedFinding, SafetyConfig
from trainer_core.reporting import (
    NoticeEvent,
    Reporter,
    SafetyDetails,
    SafetyEvent,
    SafetyFailure,
    SafetyFinding,
    SafetyRound,
)
from trainer_core.run_dir import FAILURES_FILE, SUMMARY_FILE, write_file
from trainer_core.safety.asking import Answer, Asker, describe_error
from trainer_core.safety.check import Judgement, judge_answer
from trainer_core.safety.failure_file import append_failures
from trainer_core.safety.findings import build_card_table, build_failed_round, find_open, list_failures
from trainer_core.safety.guard import Guard
from trainer_core.safety.pairs import check_pairs, with_pairs
from trainer_core.safety.probes import Probe, ProbeSet
from trainer_core.safety.rules import RuleSet
from trainer_core.safety.summary import Summary, summarise
from trainer_core.safety.verdict import with_verdicts

log = logging.getLogger(__name__)

MAX_SHARE = 0.05
"""Of the run's time so far, rounds before the last may take so much; the last asks every probe."""
MAX_REPORTED = 300
"""So many failures, with their answers, go into a round's event; safety_failures.jsonl has all."""


@dataclasses.dataclass(frozen=True)
class _Judged:
    """What rank 0 found in a round's answers."""

    summary: Summary
    failures: list[SafetyFailure]
    open_findings: list[SafetyFinding]
    base: list[Judgement]


class SafetyMonitor:
    """One rank's part. Construct it once, on every rank; `run_round` is called on every rank after the same step."""

    def __init__(  # noqa: PLR0913  by keyword
        self,
        config: SafetyConfig,
        *,
        accelerator: Accelerator,
        asker: Asker,
        probes: ProbeSet,
        rules: RuleSet,
        guard: Guard | None,
        accepted: Iterable[AcceptedFinding],
        reporter: Reporter,
        folder: Path,
    ) -> None:
        self._config = config
        self._accelerator, self._asker, self._reporter = accelerator, asker, reporter
        self._probes, self._rules, self._guard, self._accepted = probes, rules, guard, tuple(accepted)
        self._folder = folder
        self._order = mix_families(probes.probes)
        self._batch_size = asker.batch_size * accelerator.num_processes
        self._next = 0
        """Where the next round begins in that order."""
        self._base_answers: dict[str, Answer] = {}
        self._started = time.perf_counter()
        self._seconds, self._num_batches = 0.0, 0
        """What rounds took so far, and for how many batches on each rank."""

    def run_round(self, step: int, *, is_last: bool) -> list[SafetyFinding]:
        """Ask some probes, or all of them after the last step. What must end the run, on every rank: nothing with
        `on_violation: record`, else the open findings."""
        started = time.perf_counter()
        if is_last:
            (self._folder / SAFETY_FILE).unlink(missing_ok=True)
        probes = self._choose(is_last=is_last)
        if not probes:
            message = f"no safety probe was asked after step {step}: {MAX_SHARE:.0%} of the run's time are used up"
            self._reporter.report(NoticeEvent(code="safety_round_skipped", message=message, details={"step": step}))
            return []
        open_findings = self._ask_and_judge(step, probes, started, is_last=is_last)
        self._seconds += time.perf_counter() - started
        self._num_batches += -(-len(probes) // self._batch_size)
        shared = [open_findings]
        broadcast_object_list(shared)
        return [] if self._config.on_violation == "record" else shared[0]

    def _choose(self, *, is_last: bool) -> list[Probe]:
        """The next ones in turn, as many batches as the time allows; the first round asks one."""
        if is_last:
            return list(self._order)
        num_batches = 1
        if self._num_batches:
            elapsed = time.perf_counter() - self._started
            # The smallest of all ranks' numbers: they must ask the same probes, and their clocks differ.
            num_batches = min(gather_object([count_batches(elapsed, self._seconds, self._num_batches)]))
        probes = take_turn(self._order, self._next, num_batches * self._batch_size)
        self._next = (self._next + len(probes)) % len(self._order)
        return probes

    def _ask_and_judge(
        self, step: int, probes: Sequence[Probe], started: float, *, is_last: bool
    ) -> list[SafetyFinding]:
        """The open findings, on rank 0; elsewhere none."""
        refused: dict[str, str] = {}
        try:
            prompts, refused = self._asker.encode(probes)
            problem = None
        except Exception as error:  # whatever a tokenizer raises
            prompts, problem = {}, describe_error(error)
        problem = next(filter(None, gather_object([problem])), None)
        answers: dict[str, Answer] = {}
        if problem is None:
            new = {probe_id: prompt for probe_id, prompt in prompts.items() if probe_id not in self._base_answers}
            asked = self._asker.ask(prompts, new)
            answers, problem = asked.answers, asked.problem
            self._base_answers |= asked.base_answers
        if not self._accelerator.is_main_process:
            return []
        judged = None
        if problem is None:
            try:
                judged = self._judge([probe for probe in probes if probe.id in answers], answers, refused)
            except Exception as error:  # a rule that fails on an answer must not end the training, nor let it pass
                log.exception("the answers could not be judged")
                problem = describe_error(error)
        round_ = self._build_round(step, len(answers), refused, time.perf_counter() - started, is_last=is_last)
        return self._finish(round_, judged, problem)

    # --- On rank 0 ---

    def _judge(self, probes: Sequence[Probe], answers: dict[str, Answer], refused: dict[str, str]) -> _Judged:
        rules = self._rules
        judged, base = judge_round(rules, probes, answers, self._base_answers, self._guard)
        summary = summarise(rules, judged, base)
        failures = list_failures(judged, {probe.id: probe for probe in probes}, answers, summary)
        return _Judged(summary, failures, find_open(failures, summary, refused, self._accepted), base)

    def _build_round(
        self, step: int, num_asked: int, refused: dict[str, str], seconds: float, *, is_last: bool
    ) -> SafetyRound:
        probes, rules = self._probes, self._rules
        return {
            "step": step,
            "is_last": is_last,
            "ok": False,
            "error": None,
            "probes": {
                "version": probes.version,
                "digest": probes.digest,
                "asked": num_asked,
                "refused": refused,
            },
            "rules": {"version": rules.version, "digest": rules.digest},
            "guard": self._guard.config.model if self._guard else None,
            "seconds": round(seconds, 3),
            "summary": None,
        }

    def _finish(self, round_: SafetyRound, judged: _Judged | None, problem: str | None) -> list[SafetyFinding]:
        """Write and report a round. Its open findings."""
        if judged is None:
            round_["error"] = problem
            message, failures = f"not checked: {problem}", []
            open_findings = build_failed_round(problem or "", self._accepted)
        else:
            round_["ok"], round_["summary"] = True, judged.summary.to_json()
            message, failures, open_findings = _describe(judged), judged.failures, judged.open_findings
        self._write(round_, failures, judged)
        action = self._config.on_violation if open_findings else "record"
        details: SafetyDetails = {
            "round": round_,
            "failures": failures[:MAX_REPORTED],
            "num_failures": len(failures),
            "escalation": None if action == "record" else action,
            "open_findings": open_findings,
        }
        step = round_["step"]
        log.log(logging.INFO if round_["ok"] else logging.WARNING, "safety after step %d: %s", step, message)
        self._reporter.report(SafetyEvent(step=step, ok=round_["ok"], message=message, details=details))
        return open_findings

    def _write(self, round_: SafetyRound, failures: Sequence[SafetyFailure], judged: _Judged | None) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat()
        told: dict[str, Any] = {"time": now, "step": round_["step"]}
        append_failures(self._folder / FAILURES_FILE, ({**told, **failure} for failure in failures))
        with (self._folder / SUMMARY_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, **round_}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if round_["is_last"] and judged is not None:
            table = build_card_table(self._rules, judged.summary, judged.base, round_["guard"])
            write_file(self._folder / SAFETY_FILE, json.dumps(table, indent=1))


def count_batches(elapsed: float, spent: float, num_batches: int) -> int:
    """How many more keep rounds within MAX_SHARE of the elapsed seconds, if each takes as long as those before. Whole
    ones: a batch that is half full takes as long."""
    return max(0, int((MAX_SHARE * elapsed - spent) / (spent / num_batches)))


def take_turn(order: Sequence[Probe], first: int, count: int) -> list[Probe]:
    """The next ones, around the end, none twice."""
    return [order[(first + offset) % len(order)] for offset in range(min(count, len(order)))]


def judge_all(rules: RuleSet, probes: Sequence[Probe], answers: Mapping[str, Answer]) -> list[Judgement]:
    judged = [judge_answer(rules, probe, answers[probe.id].text, ended=answers[probe.id].has_end) for probe in probes]
    return with_pairs(judged, check_pairs(rules, probes, judged))


def judge_round(
    rules: RuleSet,
    probes: Sequence[Probe],
    answers: Mapping[str, Answer],
    base_answers: Mapping[str, Answer],
    guard: Guard | None,
) -> tuple[list[Judgement], list[Judgement]]:
    """With the adapter and without it. Raises GuardError."""
    sets = [answers, base_answers]
    judged = [judge_all(rules, probes, found) for found in sets]
    if guard is not None:
        verdicts = guard.judge([(probe, found[probe.id].text) for found in sets for probe in probes])
        halves = verdicts[: len(probes)], verdicts[len(probes) :]
        judged = [with_verdicts(rules, *both, guard.config) for both in zip(judged, halves, strict=True)]
    return judged[0], judged[1]


def mix_families(probes: Iterable[Probe]) -> list[Probe]:
    """One of each family after another, so that few probes try many things; both of a pair stand together."""
    families: dict[str, dict[str, list[Probe]]] = {}
    for probe in probes:
        families.setdefault(probe.family, {}).setdefault(probe.pair or probe.id, []).append(probe)
    rows = zip_longest(*(cases.values() for cases in families.values()), fillvalue=[])
    return [probe for row in rows for case in row for probe in case]


def _describe(judged: _Judged) -> str:
    summary = judged.summary
    clean = f"{summary.num_clean} of {summary.num_answers} answers without a finding"
    worse = f", {len(summary.regressions)} critical ones that the base has not" if summary.regressions else ""
    return f"{clean}, {len(judged.failures)} findings{worse}"
