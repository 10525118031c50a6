"""The guard model in real runs: what it calls unsafe has effect, and a guard that fails is no pass."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.guard_endpoint import complete, serve_guard
from tests.training.conftest import DATA, CreateRun, read_events, read_metrics, run_many, run_trainer
from trainer_core.adapters.facts import SafetySummary
from trainer_core.demo_model import build_demo_model
from trainer_core.reporting import ErrorEvent, SafetyEvent
from trainer_core.run_dir import FAILURES_FILE, RunDir
from trainer_core.safety.probes import load_probes

NUM_PROBES = len(load_probes().probes)
SAFETY = {"every_steps": 2, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("model") / "small"
    build_demo_model(folder, data=DATA, hidden_size=96, num_layers=1)
    return {"id": "small", "source": str(folder)}


def read_rounds(run_dir: RunDir) -> list[SafetyEvent]:
    return [event for event in read_events(run_dir) if isinstance(event, SafetyEvent)]


def test_what_the_guard_calls_unsafe_is_a_finding_of_its_own_beside_the_rules(
    create_run: CreateRun, small: dict[str, str], tmp_path: Path
) -> None:
    first = load_probes().probes[0]
    (tmp_path / "key").write_text("sk-sesame")

    def reply(body: dict[str, Any]) -> tuple[int, bytes]:
        return complete("unsafe\nS1" if body["messages"][0]["content"] == first.question else "unsafe\nS6")

    with serve_guard(reply) as endpoint:
        guard = {"url": endpoint.url, "model": "guard-1", "key_file": str(tmp_path / "key")}
        watched = create_run(model=small, safety=SAFETY, safety_guard=guard)
        alone = create_run(model=small)
        run_many([watched, alone], 1)

    rounds = read_rounds(watched)
    assert [(round_.ok, round_.details["round"]["guard"]) for round_ in rounds] == [(True, "guard-1")] * 2
    summary = rounds[-1].details["round"]["summary"]
    assert summary is not None
    (check,) = [check for check in summary["checks"] if check["code"] == "MS15"]
    assert (check["num_answers"], check["num_failures"], check["drift"]["num_pairs"]) == (NUM_PROBES, 1, NUM_PROBES)
    assert (first.id, "MS15") in {(f["probe_id"], f["check"]) for f in rounds[-1].details["open_findings"]}
    table = SafetySummary.model_validate_json((watched.path / "safety.json").read_bytes())
    (row,) = [row for row in table.rows if row.check == "MS15"]
    assert (row.prompts, row.base_failures, row.adapter_failures) == (NUM_PROBES, 1, 1)
    assert table.rule_set.endswith("guard model guard-1")
    assert {headers["Authorization"] for headers, _ in endpoint.asked} == {"Bearer sk-sesame"}
    assert not [file for file in watched.path.rglob("*.json*") if b"sesame" in file.read_bytes()]
    assert read_metrics(watched, "loss") == read_metrics(alone, "loss")


def test_a_guard_that_fails_holds_the_run_and_with_record_training_goes_on(
    create_run: CreateRun, small: dict[str, str]
) -> None:
    with serve_guard(lambda _: (500, b"")) as endpoint:
        guard = {"url": endpoint.url, "model": "guard-1"}
        recorded = create_run(model=small, safety={**SAFETY, "every_steps": None}, safety_guard=guard)
        held = create_run(model=small, safety={**SAFETY, "on_violation": "hold"}, safety_guard=guard)
        run_many([recorded], 1)
        result = run_trainer("train", held)

    assert result.returncode == 75, result.stdout + result.stderr
    (error,) = [event for event in read_events(held) if isinstance(event, ErrorEvent)]
    (finding,) = error.details["findings"]
    assert (error.code, finding["check"], finding["severity"]) == ("safety_held", "not_checked", "critical")
    assert finding["explanation"].startswith("guard_refused: The guard answered with HTTP status 500.")
    (round_,) = read_rounds(held)
    answers = [body["messages"][-1]["content"] for _, body in endpoint.asked if body["messages"][-1]["content"]]
    assert (round_.ok, round_.step) == (False, 2)
    assert not [answer for answer in answers if len(answer) > 20 and answer in result.stdout + result.stderr]
    assert [round_.ok for round_ in read_rounds(recorded)] == [False]
    assert recorded.adapter.is_dir()
    assert not (recorded.path / "safety.json").exists()
    assert json.loads((recorded.path / "safety_summary.jsonl").read_text())["ok"] is False
    assert not (recorded.path / FAILURES_FILE).read_bytes()
