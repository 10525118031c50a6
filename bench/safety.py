"""How well and how fast the safety rules judge answers, and what asking costs a run.

Run: python -m bench.safety [--medsafety FILE], or --part to measure only the rules, or only the monitor.

`bench/safety_answers.jsonl` holds labelled answers to the package's probes. Rules were mended where the development
halves showed misses; the held-out halves were only measured, and the figures without a half's name are theirs: an
ordinary and a hard set, whose answers were written to be difficult after the rules had been finished on the ordinary
one. MS14 is measured on the pairs that the labelled answers of MS01 and MS02 make.

- `critical_recall`: of the unsafe answers of critical checks, the share that their check finds.
- `false_positive_rate`: of the safe answers of all checks, the share that their check flags.
- `answers_per_second`: on the processor's clock of one core, the labelled answers; `..._500_characters`: several of
  them joined until they are that long, which makes every check and the scanner work on nearly each of them.
- `medsafety_flagged`: of the safe responses in a file of MedSafetyBench, the share that any check flags.
- `monitor_...`: bench.safety_monitor.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.report import read_figures, write_result
from bench.safety_monitor import measure_monitor
from trainer_core.safety.check import judge_answer
from trainer_core.safety.pairs import check_pairs
from trainer_core.safety.probes import Expected, Family, Message, Probe, load_probes
from trainer_core.safety.rules import RuleSet
from trainer_core.safety.violation import Severity

ANSWERS = Path(__file__).with_name("safety_answers.jsonl")
HALVES = ("development", "held_out", "hard_development", "hard_held_out")
_HELD_OUT = ("held_out", "hard_held_out")
_LONG = 500
_PASSES = 5


class Labelled(NamedTuple):
    check: str
    probe: Probe
    fails: bool
    half: str
    answer: str


class Count(NamedTuple):
    found: int
    total: int


Counts = dict[tuple[str, str, bool], Count]
"""Check, half, whether the answers fail."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--medsafety", type=Path)
    parser.add_argument("--part", choices=("rules", "monitor"), help="the other part's figures stay as they were")
    options = parser.parse_args(arguments)
    figures = read_figures("safety") if options.part else {}
    if options.part != "monitor":
        figures |= measure_rules(options.medsafety)
    if options.part != "rules":
        figures |= measure_monitor()
    write_result("safety", figures)


def measure_rules(medsafety: Path | None) -> dict[str, float]:
    rules, rows = RuleSet.load(), load_labelled()
    figures = describe(rules, count_flagged(rules, rows)) | measure_pairs(rules, rows) | measure_speed(rules, rows)
    return figures | (measure_refusals(rules, medsafety) if medsafety else {})


def load_labelled() -> list[Labelled]:
    probes = {probe.id: probe for probe in load_probes().probes}
    lines = map(json.loads, ANSWERS.read_text(encoding="utf-8").splitlines())
    return [Labelled(r["check"], probes[r["probe"]], r["fails"], r["half"], r["answer"]) for r in lines]


def count_flagged(rules: RuleSet, rows: Sequence[Labelled]) -> Counts:
    counts: defaultdict[tuple[str, str, bool], Count] = defaultdict(lambda: Count(0, 0))
    for row in rows:
        found = judge_answer(rules, row.probe, row.answer).fails(row.check)
        before = counts[row.check, row.half, row.fails]
        counts[row.check, row.half, row.fails] = Count(before.found + found, before.total + 1)
    return dict(counts)


def describe(rules: RuleSet, counts: Counts) -> dict[str, float]:
    critical = [code for code, check in rules.checks.items() if check.severity is Severity.CRITICAL]
    every = sorted({code for code, _, _ in counts})
    figures = {
        "critical_recall": rate(counts, critical, _HELD_OUT, fails=True),
        "false_positive_rate": rate(counts, every, _HELD_OUT, fails=False),
        "critical_false_positive_rate": rate(counts, critical, _HELD_OUT, fails=False),
    }
    for half in HALVES:
        figures[f"critical_recall_{half}"] = rate(counts, critical, (half,), fails=True)
        figures[f"false_positive_rate_{half}"] = rate(counts, every, (half,), fails=False)
    for code in every:
        figures[f"recall_{code.lower()}"] = rate(counts, [code], _HELD_OUT, fails=True)
        figures[f"false_positives_{code.lower()}"] = rate(counts, [code], _HELD_OUT, fails=False)
    return {**figures, "labelled_answers": sum(count.total for count in counts.values())}


def rate(counts: Counts, codes: Sequence[str], halves: Sequence[str], *, fails: bool) -> float:
    chosen = [
        count
        for (code, half, failing), count in counts.items()
        if code in codes and half in halves and failing is fails
    ]
    return sum(count.found for count in chosen) / sum(count.total for count in chosen)


def measure_pairs(rules: RuleSet, rows: Sequence[Labelled]) -> dict[str, float]:
    """A plain case that passes beside a pressed one that fails (must be found), or passes too (must not)."""
    firsts: dict[tuple[str, bool], Labelled] = {}
    for row in rows:
        if row.check in ("MS01", "MS02"):
            firsts.setdefault((row.probe.id, row.fails), row)
    figures = {}
    for name, pressed_fails in (("recall_ms14", True), ("false_positives_ms14", False)):
        found = total = 0
        for (_, fails), pressed in firsts.items():
            plain = firsts.get((pressed.probe.pair or "", False))
            if plain is None or fails is not pressed_fails:
                continue
            judgements = [judge_answer(rules, row.probe, row.answer) for row in (plain, pressed)]
            found += len(check_pairs(rules, [plain.probe, pressed.probe], judgements))
            total += 1
        figures[name] = found / total
    return figures


def measure_speed(rules: RuleSet, rows: Sequence[Labelled]) -> dict[str, float]:
    short = [(row.probe, row.answer) for row in rows]
    long = []
    joined = ""
    for row in rows:
        joined = f"{joined} {row.answer}".strip() if row.check != "MS12" else joined
        if len(joined) >= _LONG:
            long.append((row.probe, joined))
            joined = ""
    return {
        "answers_per_second": measure_pace(rules, short),
        "characters_per_answer": sum(len(answer) for _, answer in short) / len(short),
        "answers_per_second_500_characters": measure_pace(rules, long * (len(short) // len(long))),
    }


def measure_pace(rules: RuleSet, answers: Sequence[tuple[Probe, str]]) -> float:
    """The best of some passes: what else the machine does also slows the processor's own clock."""
    return max(_measure_pass(rules, answers) for _ in range(_PASSES))


def _measure_pass(rules: RuleSet, answers: Sequence[tuple[Probe, str]]) -> float:
    started = time.process_time()
    for probe, answer in answers:
        judge_answer(rules, probe, answer)
    return len(answers) / (time.process_time() - started)


def measure_refusals(rules: RuleSet, path: Path) -> dict[str, float]:
    """Of JSONL rows {request, safe_response}: the response is a refusal, so no check should find anything."""
    answers = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        message = Message(role="user", content=row["request"])
        probe = Probe(id=f"row-{number}", family=Family.HARM, expected=Expected.REFUSAL, messages=(message,))
        answers.append((probe, row["safe_response"]))
    flagged = sum(bool(judge_answer(rules, probe, answer).violations) for probe, answer in answers)
    return {
        "medsafety_flagged": flagged / len(answers),
        "medsafety_rows": len(answers),
        "medsafety_answers_per_second": measure_pace(rules, answers),
        "medsafety_characters_per_answer": sum(len(answer) for _, answer in answers) / len(answers),
    }


if __name__ == "__main__":
    main()
