"""`spec` turns a command line into a run folder, keeps the one that is there, and refuses to change it."""

import argparse
import json
from pathlib import Path

import pytest

from trainer_core.config import AcceptedFinding, SafetyConfig
from trainer_core.new_run import add_arguments, create_run
from trainer_core.run_dir import RunDir, RunSpec


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder and rows in the current directory."""
    (tmp_path / "llama").mkdir()
    (tmp_path / "rows.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def create(*options: str, folder: str = "run", data: str = "rows.jsonl") -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    add_arguments(parser)
    return create_run(parser.parse_args([folder, "--model", "llama", "--data", data, *options]))


def load(folder: str = "run") -> RunSpec:
    return RunDir(Path(folder)).load_spec()


def test_a_run_needs_no_more_than_a_model_and_rows(inputs: Path) -> None:
    assert create() == 0

    spec = load()
    assert (spec.job_id, spec.model.id, spec.num_processes, spec.gpus) == ("run", "llama", 1, 0)
    assert (spec.model.source, spec.train_path) == (str(inputs / "llama"), str(inputs / "rows.jsonl"))
    assert spec.training == RunSpec.model_fields["training"].default


def test_safety_probes_are_asked_unless_they_are_turned_off(inputs: Path) -> None:
    (inputs / "ward.yaml").touch()

    assert create(folder="default") == 0
    assert load("default").safety == SafetyConfig(every_steps=100, on_violation="record")
    assert create("--safety", "on_violation=hold", "every_steps=null", folder="hold") == 0
    assert load("hold").safety == SafetyConfig(every_steps=None, on_violation="hold")
    assert create("--safety", "off", "--safety-probes", "ward.yaml", folder="off") == 0
    assert (load("off").safety, load("off").safety_probes_path) == (None, str(inputs / "ward.yaml"))


def test_a_run_whose_findings_were_accepted_is_still_the_same_run(inputs: Path) -> None:
    assert create() == 0
    spec = Path("run/spec.json")
    accepted = [{"probe_id": "emergency-01", "check": "MS01"}]
    spec.write_text(json.dumps({**json.loads(spec.read_text()), "accepted_findings": accepted}))

    assert create() == 0
    assert load().accepted_findings == (AcceptedFinding(probe_id="emergency-01", check="MS01"),)


@pytest.mark.parametrize("word", ["hold", "on_violation=whistle", "off=1"])
def test_unclear_safety_settings_are_refused(inputs: Path, word: str) -> None:
    assert create("--safety", word) == 2


def test_a_guard_model_judges_where_one_is_named(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["url=http://guard/v1", "model=g", "key_file=key", 'ignored=["S5"]']

    assert create("--safety-guard", *words) == create("--safety-guard", *words) == 0
    guard = load().safety_guard
    assert guard is not None
    assert (guard.endpoint, guard.ignored) == ("http://guard/v1/chat/completions", ("S5",))
    assert guard.key_file == inputs / "key"
    assert create("--safety-guard", "url=http://ann:sesame@guard/v1", "model=g", folder="other") == 2
    assert create("--safety-guard", "guard", folder="other") == 2
    assert "sesame" not in capsys.readouterr().err


def test_settings_come_from_files_and_words_and_the_later_wins(inputs: Path) -> None:
    (inputs / "job.json").write_text(json.dumps({"model": "x", "training": {"epochs": 2, "lora": {"r": 4}}}))
    (inputs / "plain.json").write_text(json.dumps({"epochs": 5}))

    assert create("--training", "job.json", "plain.json", "lora.alpha=8", "--training", "precision=fp32") == 0

    training = load().training
    assert (training.epochs, training.lora.r, training.lora.alpha, training.precision) == (5, 4, 8, "fp32")


@pytest.mark.parametrize(("validation", "path", "fraction"), [("0.1", None, 0.1), ("rows.jsonl", "rows.jsonl", None)])
def test_rows_are_held_out_by_share_or_by_file(
    inputs: Path, validation: str, path: str | None, fraction: float | None
) -> None:
    assert create("--validation", validation) == 0

    found = load().validation
    assert (found.path, found.fraction) == (str(inputs / path) if path else None, fraction)


def test_a_deepspeed_file_is_taken_into_the_run(inputs: Path) -> None:
    config = {"zero_optimization": {"stage": 3}}
    (inputs / "deepspeed.json").write_text(json.dumps(config))

    assert create("--deepspeed", "deepspeed.json", "--training", "deepspeed.stage=3") == 0

    deepspeed = load().training.deepspeed
    assert (deepspeed.stage, deepspeed.config) == (3, config)


def test_the_same_command_again_keeps_the_spec(inputs: Path) -> None:
    assert create("--processes", "8", "--gpus", "8") == 0
    before = (inputs / "run" / "spec.json").stat()

    assert create("--processes", "8", "--gpus", "8") == 0

    assert (inputs / "run" / "spec.json").stat() == before


def test_a_changed_command_is_refused(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert create("--processes", "8") == 0

    assert create("--processes", "4") == 2

    assert "says something else" in capsys.readouterr().err
    assert load().num_processes == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--training", "no_such_setting=1"], "no_such_setting"),
        (["--training", "lora.r=0"], "lora.r"),
        (["--training", "absent.json"], "absent.json"),
        (["--training", "rows.jsonl"], "rows.jsonl holds no JSON object"),
        (["--training", "lora=1", "lora.r=2"], "lora.r"),
        (["--deepspeed", "absent.json"], "absent.json"),
        (["--validation", "absent.jsonl"], "absent.jsonl"),
        (["--validation", "1.5"], "fraction"),
        (["--model", "absent"], "not a folder"),
        (["--processes", "0"], "num_processes"),
    ],
)
def test_what_makes_no_sense_is_named_and_nothing_is_written(
    inputs: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert create(*options) == 2

    assert said in capsys.readouterr().err
    assert not (inputs / "run").exists()
