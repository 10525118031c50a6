"""The presets of examples/jobs fit the hardware that they are for; the classic one is refused, reason by reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.spec import JobSpec
from tests.unit.trainer_core.shapes import LLAMA_2_7B, LLAMA_31_8B, LLAMA_31_70B, build_llama_facts
from trainer_core.planning.compatibility import find_conflicts
from trainer_core.planning.deepspeed_json import Conflict
from trainer_core.planning.hardware import Hardware
from trainer_core.planning.model_facts import ModelFacts
from trainer_core.planning.plan import Plan, plan_training

PRESETS = Path(__file__).parents[3] / "examples" / "jobs"

# As nvidia-smi tells them, in MiB: a driver keeps some of what is printed on the box.
GPUS = {"8 GB": 8188, "24 GB": 24564, "80 GB": 81559}


def load(name: str) -> JobSpec:
    return JobSpec.model_validate_json((PRESETS / name).read_bytes())


def plan(spec: JobSpec, facts: ModelFacts | None, gpu: str) -> Plan:
    gpus = spec.resources.gpus or 0
    return plan_training(
        spec.training,
        num_processes=max(1, gpus),
        gpus=gpus,
        longest_sequence=spec.training.max_seq_len,
        facts=facts,
        hardware=Hardware(gpu_memory_bytes=GPUS[gpu] << 20, host_memory_bytes=512 << 30),
    )


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.json")), ids=lambda path: path.name)
def test_a_preset_is_a_whole_job_request(path: Path) -> None:
    assert JobSpec.model_validate_json(path.read_bytes()).name


@pytest.mark.parametrize(
    ("name", "config", "gpu", "engine", "recomputes"),
    [
        ("7b-8gb.json", LLAMA_2_7B, "8 GB", "one process", True),
        ("8b-24gb.json", LLAMA_31_8B, "24 GB", "one process", True),
        ("8b-80gb.json", LLAMA_31_8B, "80 GB", "one process", False),
        ("70b-8x80gb-zero3.json", LLAMA_31_70B, "80 GB", "ZeRO-3", True),
    ],
)
def test_a_preset_fits_the_cards_that_it_is_for(
    name: str, config: dict[str, Any], gpu: str, engine: str, recomputes: bool
) -> None:
    chosen = plan(load(name), build_llama_facts(config), gpu)

    assert (chosen.engine, chosen.gradient_checkpointing) == (engine, recomputes)


def test_a_gpus_share_of_the_70b_is_what_the_page_says() -> None:
    """16.4 GiB, the 16 GB per GPU that ZeRO-3 is known for."""
    facts = build_llama_facts(LLAMA_31_70B)
    chosen = plan(load("70b-8x80gb-zero3.json"), facts, "80 GB")
    page = (PRESETS.parent / "README.md").read_text(encoding="utf-8")

    assert chosen.memory is not None
    assert f"{2 * facts.num_weights / 8 / 2**30:.1f} GiB" in page
    assert f"{chosen.memory.base / 2**30:.1f} GiB" in page
    assert f"{chosen.memory.peak / 2**30:.1f} GiB" in page


def test_the_demo_trains_anywhere() -> None:
    assert plan(load("demo.json"), None, "8 GB").engine == "one process"


# --- What a common script of this kind asks for ---


def find(request: dict[str, Any]) -> list[Conflict]:
    spec = JobSpec.model_validate(request)
    return find_conflicts(spec.training, num_processes=spec.resources.gpus or 1)


def test_every_conflict_of_the_classic_is_named_with_its_remedy() -> None:
    request = json.loads((PRESETS / "classic.json").read_bytes())

    conflicts = {conflict.field: conflict for conflict in find(request)}

    assert {field: conflict.code for field, conflict in conflicts.items()} == {
        "precision": "fp16_not_supported",
        "deepspeed.config.optimizer": "deepspeed_key_not_allowed",
    }
    assert "bf16" in conflicts["precision"].remedy
    assert "Leave it out" in conflicts["deepspeed.config.optimizer"].remedy


def test_the_classic_trains_with_the_remedies_applied() -> None:
    request = json.loads((PRESETS / "classic.json").read_bytes())
    request["training"]["precision"] = "bf16"
    del request["training"]["deepspeed"]["config"]["optimizer"]

    chosen = plan(JobSpec.model_validate(request), build_llama_facts(LLAMA_31_8B), "24 GB")

    assert (chosen.engine, chosen.offload) == ("ZeRO-3", "cpu")
    assert (chosen.micro_batch_size, chosen.accumulation, chosen.quantization) == (1, 8, "8bit")
