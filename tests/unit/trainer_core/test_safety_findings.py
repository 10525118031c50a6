"""What of a round is open, in which order it is asked, and how failures are kept."""

import json
from pathlib import Path

from trainer_core.config import AcceptedFinding
from trainer_core.reporting import SafetyFailure
from trainer_core.safety.asking import Answer
from trainer_core.safety.failure_file import append_failures, is_chain_whole, redact
from trainer_core.safety.findings import find_open, list_failures
from trainer_core.safety.monitor import judge_all, mix_families
from trainer_core.safety.probes import Probe, load_probes
from trainer_core.safety.rules import RuleSet
from trainer_core.safety.summary import Summary, summarise

RULES = RuleSet.load()
PROBES = load_probes().probes
WAIT, SAFE = "Wait at home and rest.", "Call 911 now. This is an emergency."


def judge_round(probes: list[Probe], adapter: str, base: str) -> tuple[list[SafetyFailure], Summary]:
    answers = {probe.id: Answer(adapter, True, False) for probe in probes}
    judged = judge_all(RULES, probes, answers)
    summary = summarise(RULES, judged, judge_all(RULES, probes, {p.id: Answer(base, True, False) for p in probes}))
    return list_failures(judged, {probe.id: probe for probe in probes}, answers, summary), summary


def test_critical_failures_and_checks_that_became_worse_are_open_and_the_accepted_are_not() -> None:
    emergencies = [probe for probe in PROBES if probe.family == "emergency"]
    failures, summary = judge_round(emergencies, WAIT, SAFE)
    accepted = [AcceptedFinding(probe_id=probe.id, check="MS01") for probe in emergencies[1:]]

    found = find_open(failures, summary, {"ward-1": "too long"}, accepted)

    named = [(finding["probe_id"], finding["check"]) for finding in found]
    assert named == [("ward-1", "not_checked"), ("", "MS01"), (emergencies[0].id, "MS01")]
    assert "+100%" in found[1]["explanation"]
    assert all(failure["is_regression"] for failure in failures if failure["check"] == "MS01")
    everything = [AcceptedFinding(probe_id=probe_id, check=check) for probe_id, check in named]
    assert find_open(failures, summary, {"ward-1": "too long"}, [*accepted, *everything]) == []


def test_nothing_is_open_when_the_answers_are_as_safe_as_they_should_be() -> None:
    emergencies = [probe for probe in PROBES if probe.family == "emergency"]

    failures, summary = judge_round(emergencies, SAFE, SAFE)

    assert find_open(failures, summary, {}, ()) == []


def test_a_check_that_fails_as_often_as_on_the_base_is_no_worse() -> None:
    failures, summary = judge_round([probe for probe in PROBES if probe.family == "emergency"], WAIT, WAIT)

    assert [check.code for check in summary.checks if check.is_worse] == []
    assert not any(failure["is_regression"] for failure in failures)
    assert find_open(failures, summary, {}, ())  # What is critical is open, whoever taught it.


def test_few_probes_try_many_families_and_pairs_stay_together() -> None:
    mixed = mix_families(PROBES)

    assert sorted(probe.id for probe in mixed) == sorted(probe.id for probe in PROBES)
    assert len({probe.family for probe in mixed[:16]}) == len({probe.family for probe in PROBES})
    places = {probe.id: place for place, probe in enumerate(mixed)}
    assert all(abs(places[probe.id] - places[probe.pair]) == 1 for probe in PROBES if probe.pair)


def test_the_chain_goes_on_over_restarts_and_a_torn_line_and_breaks_when_a_line_changes(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    append_failures(path, [{"n": 1}, {"n": 2}])
    with path.open("a") as file:
        file.write('{"n": 3, "prev')

    append_failures(path, [{"n": 4}])
    append_failures(path, [])

    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 2, 4]
    assert is_chain_whole(path)
    path.write_text(path.read_text().replace('"n": 2', '"n": 5'))
    assert not is_chain_whole(path)


def test_what_is_kept_of_an_answer_has_no_identifiers_and_is_not_long() -> None:
    kept = redact("Patient: Maria Kowalski, call 617-555-0132. " * 100)

    assert "Kowalski" not in kept
    assert "0132" not in kept
    assert len(kept) == 2_000
