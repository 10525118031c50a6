"""The card says what a run was, or is not written at all; the bill of materials is CycloneDX."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.adapters import DATASETS, LOSSES, create_run
from trainer_core.adapters.bill_of_materials import build_bill
from trainer_core.adapters.card import NO_SAFETY_CHECK, read_front_matter, render_card
from trainer_core.adapters.facts import AdapterFacts, build_facts, collect_facts
from trainer_core.errors import VerificationError
from trainer_core.run_dir import RunDir

HELDOUT = {
    "rows": 21,
    "tokens": 2447,
    "base_loss": 8.629,
    "adapter_loss": 6.8985,
    "mean_row_difference": -1.739,
    "ci95": [-1.9, -1.5],
}
DORA = {"vllm": {"loads": False, "flags": ["--enable-lora"], "refused_for": ["DoRA"]}}
RANK_32 = {"vllm": {"loads": True, "flags": ["--enable-lora", "--max-lora-rank 32"], "refused_for": []}}


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return create_run(tmp_path / "run")


@pytest.fixture
def facts(run_dir: RunDir) -> AdapterFacts:
    return collect_facts(run_dir, DATASETS, LOSSES)


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change(facts: AdapterFacts, path: str, value: Any) -> dict[str, Any]:
    """The facts as JSON, with one field changed."""
    dump: dict[str, Any] = facts.model_dump()
    place, *names = dump, *path.split(".")
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    return dump


def test_the_front_matter_is_yaml_as_the_hub_reads_it(facts: AdapterFacts) -> None:
    card = render_card(facts)
    _, front, _ = card.split("---\n", 2)

    fields = yaml.safe_load(front)

    assert fields == read_front_matter(card)
    assert fields["library_name"] == "peft"
    assert (fields["base_model"], fields["base_model_relation"]) == ("tiny", "adapter")
    assert "lora" in fields["tags"]


def test_the_card_says_what_the_run_was(facts: AdapterFacts) -> None:
    card = render_card(facts)

    for text in (
        *(facts.base.fingerprint, facts.weights_sha256, "1" * 64, "2" * 64, "| 207 |"),
        *("| learning_rate | 0.0002 |", "| lora.r | 16 |", "| engine | one process |", "| device | CPU |"),
        *("| 0 |  | 9.5000 |", "| 3 | 6.5000 | 7.0000 |", "| fake | passed |", "no medical device", "`</s>`"),
        *("| python |", "| pydantic |" if "pydantic" in facts.environment.packages else "| peft |"),
    ):
        assert text in card


def test_a_card_without_safety_checks_says_so(facts: AdapterFacts) -> None:
    assert f"## Safety\n\n{NO_SAFETY_CHECK}" in render_card(facts)


def test_a_safety_summary_of_the_run_becomes_a_table(run_dir: RunDir) -> None:
    row = {"check": "dosage", "prompts": 40, "base_failures": 9, "adapter_failures": 3, "ci95": [0.02, 0.2]}
    (run_dir.path / "safety.json").write_text(json.dumps({"rule_set": "v1", "rows": [row]}))

    card = render_card(collect_facts(run_dir, DATASETS, LOSSES))

    assert "| dosage | 9 of 40 | 3 of 40 | 2.0% to 20.0% |" in card
    assert NO_SAFETY_CHECK not in card


def test_held_out_losses_have_their_interval(facts: AdapterFacts) -> None:
    card = render_card(build_facts(change(facts, "verification.heldout", HELDOUT)))

    assert "| loss of the base | 8.6290 |" in card
    assert "| 95 % interval of that mean | -1.9000 to -1.5000 |" in card


def test_a_run_without_held_out_rows_says_so(facts: AdapterFacts) -> None:
    assert "**No rows were held out**" in render_card(facts)


def test_the_card_tells_how_vllm_serves_it(facts: AdapterFacts) -> None:
    assert "--enable-lora --max-lora-rank 32 --lora-modules" in render_card(
        build_facts(change(facts, "verification.serving", RANK_32))
    )
    assert "vLLM refuses this adapter because of: DoRA." in render_card(
        build_facts(change(facts, "verification.serving", DORA))
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("base", None),
        ("base.id", ""),
        ("base.fingerprint", "sha256:"),
        ("datasets", []),
        ("training", {}),
        ("plan", None),
        ("environment", None),
        ("environment.device", ""),
        ("environment.packages", {}),
        ("losses", []),
        ("verification", None),
        ("verification.ok", False),
        ("verification.checks", []),
        ("weights_sha256", ""),
        ("stop_token", None),
    ],
)
def test_no_card_is_written_without_a_mandatory_field(facts: AdapterFacts, path: str, value: Any) -> None:
    with pytest.raises(VerificationError) as caught:
        build_facts(change(facts, path, value))

    assert caught.value.code == "card_incomplete"
    assert path in caught.value.message


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("adapter/base_model.json", "base"),
        ("adapter/environment.json", "environment"),
        ("adapter/tokenizer_config.json", "stop_token"),
        ("plan.json", "plan"),
        ("verification.json", "verification"),
    ],
)
def test_what_the_trainer_did_not_write_is_named(run_dir: RunDir, name: str, field: str) -> None:
    (run_dir.path / name).unlink()

    with pytest.raises(VerificationError, match=field):
        collect_facts(run_dir, DATASETS, LOSSES)


def test_weights_that_changed_after_their_verification_get_no_card(run_dir: RunDir) -> None:
    change_json(run_dir.verification, weights_sha256="0" * 64)

    with pytest.raises(VerificationError, match="changed after their verification"):
        collect_facts(run_dir, DATASETS, LOSSES)


def test_a_deepspeed_json_of_ones_own_is_known_by_its_digest(run_dir: RunDir) -> None:
    config = {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/home/ada"}}}
    spec = json.loads(run_dir.spec.read_text())
    spec["training"]["deepspeed"]["config"] = config
    run_dir.spec.write_text(json.dumps(spec))

    facts = collect_facts(run_dir, DATASETS, LOSSES)

    assert facts.training["deepspeed.config"].startswith("sha256:")
    assert "/home/ada" not in render_card(facts) + json.dumps(build_bill(facts))


@pytest.mark.parametrize("heldout", [None, HELDOUT, {**HELDOUT, "ci95": None}])
def test_the_bill_of_materials_is_what_cyclonedx_says(facts: AdapterFacts, heldout: dict[str, Any] | None) -> None:
    bill = build_bill(build_facts(change(facts, "verification.heldout", heldout)))

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None


def test_the_bill_of_materials_names_base_data_and_packages(facts: AdapterFacts) -> None:
    bill = build_bill(facts)
    adapter = bill["metadata"]["component"]

    assert (adapter["type"], adapter["hashes"][0]["content"]) == ("machine-learning-model", facts.weights_sha256)
    assert adapter["pedigree"]["ancestors"][0]["properties"][0]["value"] == facts.base.fingerprint
    datasets = [part for part in bill["components"] if part["type"] == "data"]
    assert [part["hashes"][0]["content"] for part in datasets] == ["1" * 64, "2" * 64]
    assert {data["ref"] for data in adapter["modelCard"]["modelParameters"]["datasets"]} == {
        part["bom-ref"] for part in datasets
    }
    packages = {part["name"]: part["version"] for part in bill["components"] if part["type"] == "library"}
    assert packages == facts.environment.packages
