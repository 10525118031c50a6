"""A round in numbers: bounds, drift, regressions, pairs."""

import itertools
import json
import math

import pytest

from trainer_core.safety.check import Judgement, judge_answer
from trainer_core.safety.pairs import check_pairs, with_pairs
from trainer_core.safety.probes import load_probes
from trainer_core.safety.rules import RuleSet
from trainer_core.safety.summary import compute_drift, compute_wilson, summarise

RULES = RuleSet.load()
PROBES = {probe.id: probe for probe in load_probes().probes}
SAFE = "Call 911 right now."
UNSAFE = "Lie down and rest for some hours."


def judge(probe: str, answer: str, sample: int = 0) -> Judgement:
    return judge_answer(RULES, PROBES[probe], answer, sample=sample)


def test_wilson_bounds_are_those_of_the_literature() -> None:
    """81 of 263: Newcombe 1998, Stat Med 17:857, table I, method 3."""
    lower, upper = compute_wilson(81, 263)

    assert (round(lower, 4), round(upper, 4)) == (0.2553, 0.3662)
    assert compute_wilson(0, 20)[0] == 0
    assert compute_wilson(20, 20)[1] == 1
    assert compute_wilson(0, 0) == (0, 1)


def test_drift_covers_the_truth_about_as_often_as_it_says() -> None:
    """By counting out every table of 25 pairs: 95 % within two points and a half, where rates are no extremes."""
    cells, total = (0.10, 0.15, 0.05, 0.70), 25
    truth = cells[1] - cells[2]
    covered = 0.0
    for a, b, c in itertools.product(range(total + 1), repeat=3):
        d = total - a - b - c
        if d < 0:
            continue
        ways = math.factorial(total) / math.prod(map(math.factorial, (a, b, c, d)))
        chance = ways * math.prod(p**n for p, n in zip(cells, (a, b, c, d), strict=True))
        drift = compute_drift([(True, True)] * a + [(True, False)] * b + [(False, True)] * c + [(False, False)] * d)
        covered += chance * (drift.lower <= truth <= drift.upper)

    assert covered == pytest.approx(0.95, abs=0.025)


def test_drift_of_the_same_answers_is_nothing() -> None:
    drift = compute_drift([(True, True)] * 4 + [(False, False)] * 6)

    assert drift.difference == 0
    assert drift.lower < 0 < drift.upper
    assert drift.lower == pytest.approx(-drift.upper)


def test_drift_is_at_its_most_one() -> None:
    drift = compute_drift([(True, False)] * 500)

    assert (drift.difference, drift.upper) == (1, 1)
    assert drift.lower > 0.98


def test_a_summary_tells_failures_regressions_and_passes() -> None:
    adapter = [judge("emergency-01", UNSAFE), judge("emergency-02", SAFE), judge("emergency-03", UNSAFE)]
    base = [judge("emergency-01", SAFE), judge("emergency-02", SAFE), judge("emergency-03", UNSAFE)]

    summary = summarise(RULES, adapter, base)

    assert [check.code for check in summary.checks] == sorted(RULES.checks)
    [emergencies] = [check for check in summary.checks if check.code == "MS01"]
    assert (emergencies.num_answers, emergencies.num_failures, emergencies.rate) == (3, 2, 2 / 3)
    assert emergencies.lower < 2 / 3 < emergencies.upper
    assert emergencies.drift is not None
    assert emergencies.drift.num_pairs == 3
    assert emergencies.drift.difference == pytest.approx(1 / 3)
    assert [(r.code, r.probe_id) for r in summary.regressions] == [("MS01", "emergency-01")]
    assert (summary.num_answers, summary.num_clean) == (3, 1)
    assert json.loads(json.dumps(summary.to_json()))["checks"][0]["severity"] == "critical"


def test_without_a_base_there_is_no_drift_and_no_regression() -> None:
    summary = summarise(RULES, [judge("emergency-01", UNSAFE)])

    assert all(check.drift is None for check in summary.checks)
    assert summary.regressions == ()


def test_an_incoherent_base_passed_nothing() -> None:
    summary = summarise(RULES, [judge("emergency-01", UNSAFE)], [judge("emergency-01", "")])

    assert summary.regressions == ()


def test_samples_are_paired_by_number() -> None:
    adapter = [judge("emergency-01", SAFE, 0), judge("emergency-01", UNSAFE, 1)]

    summary = summarise(RULES, adapter, [judge("emergency-01", SAFE, 1)])

    assert [(r.probe_id, r.sample) for r in summary.regressions] == [("emergency-01", 1)]


def test_the_same_answer_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="same probe"):
        summarise(RULES, [judge("emergency-01", SAFE)] * 2)


@pytest.mark.parametrize(
    ("plain", "pressed", "differs"),
    [(SAFE, UNSAFE, True), (SAFE, SAFE, False), (UNSAFE, SAFE, False), (UNSAFE, UNSAFE, False), (SAFE, "", False)],
)
def test_a_pair_differs_in_the_unsafe_direction_only(plain: str, pressed: str, differs: bool) -> None:
    judgements = [judge("emergency-01", plain), judge("emergency-01-minimised", pressed)]

    found = check_pairs(RULES, PROBES.values(), judgements)

    assert list(found) == ([("emergency-01-minimised", 0)] if differs else [])
    assert with_pairs(judgements, found)[1].fails("MS14") is differs


def test_a_pair_without_its_other_half_is_left_out() -> None:
    assert check_pairs(RULES, PROBES.values(), [judge("emergency-01-minimised", UNSAFE)]) == {}
