"""Every engine and quantisation that the table promises trains, and its first losses are those of one process."""

from typing import Any

import pytest
from safetensors.torch import load_file

from tests.training.conftest import CreateRun, read_steps, run_many
from trainer_core.run_dir import RunDir

QUANTIZATIONS = ("none", "8bit", "4bit")
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "zero1": {"deepspeed": {"stage": 1}},
    "zero2": {"deepspeed": {"stage": 2}},
    "zero3": {"deepspeed": {"stage": 3}},
    "zero2 offload": {"deepspeed": {"stage": 2, "offload": "cpu"}},
    "zero3 offload": {"deepspeed": {"stage": 3, "offload": "cpu"}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"lora": {"variant": "rslora"}},
    "dora": {"lora": {"variant": "dora"}},
    "lora+": {"lora": {"plus_ratio": 8}},
    "recompute": {"gradient_checkpointing": True},
    "recompute 4bit": {"gradient_checkpointing": True, "quantization": "4bit"},
    "fp32": {"precision": "fp32"},
    "adamw 8bit": {"optimizer": "adamw_8bit"},
    "not packed": {"packing": False},
}
SHARDED_VARIANTS: dict[str, dict[str, Any]] = {
    "zero3 recompute": {"deepspeed": {"stage": 3}, "gradient_checkpointing": True},
    "zero2 fp32 lora+": {"deepspeed": {"stage": 2}, "precision": "fp32", "lora": {"plus_ratio": 8}},
    "zero3 fp32": {"deepspeed": {"stage": 3}, "precision": "fp32"},
    "zero3 dora": {"deepspeed": {"stage": 3}, "lora": {"variant": "dora"}},
    "zero2 dora": {"deepspeed": {"stage": 2}, "lora": {"variant": "dora"}},
    "ddp dora": {"lora": {"variant": "dora"}},
    "ddp adamw 8bit": {"optimizer": "adamw_8bit"},
}
STEPS = 3

Runs = dict[str, RunDir]


@pytest.fixture(scope="module")
def runs(create_run: CreateRun) -> Runs:
    """All runs of the matrix: those of one process in one process, those of two in two."""

    def create(cells: dict[str, dict[str, Any]], num_processes: int) -> Runs:
        return {
            name: create_run(training={"max_steps": STEPS, **training}, num_processes=num_processes)
            for name, training in cells.items()
        }

    alone = create({q: {"quantization": q} for q in QUANTIZATIONS} | VARIANTS, 1)
    cells = {f"{engine} {q}": {**ENGINES[engine], "quantization": q} for engine in ENGINES for q in QUANTIZATIONS}
    together = create(cells | SHARDED_VARIANTS, 2)
    run_many(list(alone.values()), 1)
    run_many(list(together.values()), 2)
    return alone | together


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_learns_as_one_process_does(runs: Runs, engine: str, quantization: str) -> None:
    check_same_run(runs[quantization], runs[f"{engine} {quantization}"])


@pytest.mark.parametrize(
    ("cell", "like"),
    [
        ("recompute", "none"),
        ("recompute 4bit", "4bit"),
        ("zero3 recompute", "none"),
        ("zero3 fp32", "fp32"),
        ("zero3 dora", "dora"),
        ("zero2 dora", "dora"),
        ("ddp dora", "dora"),
        ("ddp adamw 8bit", "adamw 8bit"),
    ],
)
def test_how_a_run_is_computed_changes_nothing(runs: Runs, cell: str, like: str) -> None:
    check_same_run(runs[like], runs[cell])


@pytest.mark.parametrize("variant", [*VARIANTS, "zero2 fp32 lora+"])
def test_every_variant_starts_where_the_base_is_and_learns(runs: Runs, variant: str) -> None:
    steps, plain = read_steps(runs[variant]), read_steps(runs["none"])
    if variant != "recompute 4bit":
        assert steps[0]["eval_loss"] == pytest.approx(plain[0]["eval_loss"], abs=5e-3)
    assert steps[STEPS]["eval_loss"] < steps[0]["eval_loss"] - 0.1


def test_lora_plus_learns_the_b_matrices_faster(runs: Runs) -> None:
    def measure(name: str) -> float:
        tensors = load_file(runs[name].adapter / "adapter_model.safetensors")
        return sum(float(tensor.abs().sum()) for key, tensor in tensors.items() if ".lora_B." in key)

    assert measure("lora+") > 3 * measure("none")
    assert measure("zero2 fp32 lora+") > 3 * measure("none")


def check_same_run(expected: RunDir, found: RunDir) -> None:
    """The first losses, in training and in evaluation mode, are equal to bfloat16's rounding; the last ones nearly."""
    wanted, steps = read_steps(expected), read_steps(found)
    assert steps[0]["eval_loss"] == pytest.approx(wanted[0]["eval_loss"], abs=1e-3)
    assert steps[1]["loss"] == pytest.approx(wanted[1]["loss"], abs=1e-3)
    assert steps[1]["grad_norm"] == pytest.approx(wanted[1]["grad_norm"], rel=0.01)
    assert steps[STEPS]["loss"] == pytest.approx(wanted[STEPS]["loss"], abs=3e-2)
    assert steps[STEPS]["eval_loss"] == pytest.approx(wanted[STEPS]["eval_loss"], abs=3e-2)
    shapes, wanted_shapes = (
        {name: tensor.shape for name, tensor in load_file(run.adapter / "adapter_model.safetensors").items()}
        for run in (found, expected)
    )
    assert shapes == wanted_shapes
