"""Each pair of settings that cannot train together has its code, field and remedy; all others pass."""

import itertools
from typing import Any

import pytest

from trainer_core.config import TrainingConfig
from trainer_core.data.templates import BUILT_IN_TEMPLATES
from trainer_core.planning.compatibility import CHAT_TEMPLATES, find_conflicts
from trainer_core.planning.deepspeed_json import Conflict, merge_deepspeed_json
from trainer_core.planning.matrix import ENGINES, ROWS, find_code, iter_trainings


def find(num_processes: int = 1, **settings: Any) -> list[Conflict]:
    return find_conflicts(TrainingConfig.model_validate(settings), num_processes=num_processes)


def find_json(config: dict[str, Any], num_processes: int = 1, **settings: Any) -> list[Conflict]:
    deepspeed = {"stage": 2, **settings.pop("deepspeed", {}), "config": config}
    return find(num_processes, deepspeed=deepspeed, **settings)


@pytest.mark.parametrize(
    ("settings", "code", "field"),
    [
        ({"precision": "fp16"}, "fp16_not_supported", "precision"),
        ({"chat_template": "mine"}, "unknown_chat_template", "chat_template"),
        ({"lora": {"variant": "dora"}, "quantization": "8bit"}, "dora_quantized", "lora.variant"),
        ({"lora": {"variant": "dora"}, "quantization": "4bit"}, "dora_quantized", "lora.variant"),
        ({"deepspeed": {"offload": "nvme"}}, "nvme_offload_not_supported", "deepspeed.offload"),
        ({"deepspeed": {"stage": "none", "offload": "cpu"}}, "offload_needs_zero", "deepspeed.offload"),
        ({"deepspeed": {"stage": 1, "offload": "cpu"}}, "offload_needs_zero", "deepspeed.offload"),
        ({"optimizer": "adamw_8bit", "deepspeed": {"stage": 1}}, "adamw_8bit_with_deepspeed", "optimizer"),
        ({"optimizer": "adamw_8bit", "deepspeed": {"offload": "cpu"}}, "adamw_8bit_with_deepspeed", "optimizer"),
        ({"micro_batch_size": 3}, "batch_sizes_do_not_divide", "global_batch_size"),
        ({"deepspeed": {"config": {}}}, "deepspeed_stage_missing", "deepspeed.stage"),
        (
            {"deepspeed": {"stage": "none", "config": {"zero_optimization": {"stage": 2}}}},
            "deepspeed_stage_missing",
            "deepspeed.stage",
        ),
    ],
)
def test_what_cannot_train_has_a_code_a_field_and_a_remedy(settings: dict[str, Any], code: str, field: str) -> None:
    conflicts = find(**settings)

    assert (conflicts[0].code, conflicts[0].field) == (code, field)
    assert all(conflict.message and conflict.remedy for conflict in conflicts)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"deepspeed": {"offload": "cpu"}},
        {"deepspeed": {"stage": "none", "offload": "auto"}},
        {"optimizer": "adamw_8bit"},
        {"lora": {"variant": "dora"}, "deepspeed": {"stage": 3}},
        {"quantization": "8bit", "deepspeed": {"stage": 3, "offload": "cpu"}},
        *({"chat_template": name} for name in CHAT_TEMPLATES),
    ],
)
def test_what_trains_has_no_conflict(settings: dict[str, Any]) -> None:
    assert find(**settings) == []


def test_the_templates_are_those_that_there_are() -> None:
    assert tuple(sorted(BUILT_IN_TEMPLATES)) == CHAT_TEMPLATES


@pytest.mark.parametrize(
    ("batch", "micro", "num_processes", "divides"),
    [(16, "auto", 8, True), (16, "auto", 3, False), (16, 4, 4, True), (16, 8, 4, False), (1, "auto", 2, False)],
)
def test_a_step_must_divide_among_processes_and_micro_batches(
    batch: int, micro: int | str, num_processes: int, divides: bool
) -> None:
    conflicts = find(num_processes, global_batch_size=batch, micro_batch_size=micro)

    assert [conflict.code for conflict in conflicts] == ([] if divides else ["batch_sizes_do_not_divide"])


def test_all_conflicts_are_named_together() -> None:
    conflicts = find(precision="fp16", quantization="4bit", lora={"variant": "dora"}, micro_batch_size=5)

    assert [c.code for c in conflicts] == ["fp16_not_supported", "dora_quantized", "batch_sizes_do_not_divide"]


@pytest.mark.parametrize("axes", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_cell_of_the_matrix_is_of_one_kind(engine: str, axes: dict[str, list[Any]]) -> None:
    assert len({find_code(engine, training) for training in iter_trainings(engine, axes)}) == 1


def test_settings_that_train_one_by_one_train_together() -> None:
    """So that the table's rows say all there is: only DoRA's refusal needs two settings at once."""
    dora = {"variant": "dora"}
    for engine, quantization, offload, precision, variant, optimizer in itertools.product(
        ENGINES,
        ("none", "8bit", "4bit"),
        ("none", "auto", "cpu", "nvme"),
        ("bf16", "fp32", "fp16"),
        ({}, {"variant": "rslora"}, {"plus_ratio": 4}, dora),
        ("adamw", "adamw_8bit"),
    ):
        zero = {"stage": ENGINES[engine]}
        settings = {"quantization": quantization, "precision": precision, "lora": variant, "optimizer": optimizer}
        alone = [
            find(deepspeed=zero | {"offload": offload}),
            find(deepspeed=zero, precision=precision),
            find(deepspeed=zero, optimizer=optimizer),
            find(deepspeed=zero, lora=variant, quantization=quantization),
        ]
        together = find(deepspeed=zero | {"offload": offload}, **settings)
        assert {c.code for c in together} == {c.code for conflicts in alone for c in conflicts}


# --- The user's own DeepSpeed JSON ---

COMMON = {
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "none", "pin_memory": True},
        "offload_param": {"device": "none", "pin_memory": True},
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_max_live_parameters": 1e9,
    },
}
"""As it is passed around."""


def test_a_common_json_is_accepted_and_names_the_stage() -> None:
    assert find(deepspeed={"config": COMMON}) == []


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage"),
        ({"train_batch_size": 8}, "train_batch_size"),
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"gradient_clipping": 0.5}, "gradient_clipping"),
        ({"bf16": {"enabled": False}}, "bf16.enabled"),
        ({"fp16": {"enabled": True}}, "fp16.enabled"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "zero_optimization.offload_optimizer.device"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "zero_optimization.offload_param.device"),
    ],
)
def test_a_key_that_contradicts_the_run_is_named_with_both_values(config: dict[str, Any], field: str) -> None:
    [conflict] = find_json(config, micro_batch_size=2)

    assert (conflict.code, conflict.field) == ("deepspeed_conflict", f"deepspeed.config.{field}")
    value: Any = config
    for key in field.split("."):
        value = value[key]
    assert repr(value) in conflict.message
    assert "training configuration" in conflict.remedy


def test_keys_that_agree_with_the_run_are_accepted() -> None:
    config = {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}},
    }

    assert find_json(config, num_processes=2, micro_batch_size=2, deepspeed={"offload": "cpu"}) == []


@pytest.mark.parametrize(
    "key",
    [
        *("optimizer", "scheduler", "tensorboard", "wandb", "csv_monitor", "comet", "flops_profiler", "comms_logger"),
        *("hybrid_engine", "compression_training", "elasticity", "autotuning", "aio", "nebula", "checkpoint", "amp"),
        *("activation_checkpointing", "data_efficiency", "sparse_attention", "curriculum_learning", "torch_autocast"),
        "no_such_key",
    ],
)
def test_a_key_that_a_run_cannot_take_over_is_refused_by_name(key: str) -> None:
    [conflict] = find_json({key: {"enabled": True}})

    assert (conflict.code, conflict.field) == ("deepspeed_key_not_allowed", f"deepspeed.config.{key}")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"zero_optimization": {"offload_param": {"device": "none", "nvme_path": "/tmp"}}}, "offload_param.nvme_path"),
        ({"zero_optimization": {"elastic_checkpoint": True}}, "zero_optimization.elastic_checkpoint"),
        ({"bf16": {"check_grad_overflow": True}}, "bf16.check_grad_overflow"),
    ],
)
def test_a_nested_key_is_refused_too(config: dict[str, Any], field: str) -> None:
    [conflict] = find_json(config)

    assert conflict.code == "deepspeed_key_not_allowed"
    assert conflict.field.endswith(field)


@pytest.mark.parametrize("config", [{"zero_optimization": 3}, {"bf16": True}, {"train_batch_size": {"a": 1}}])
def test_a_value_of_the_wrong_shape_is_refused(config: dict[str, Any]) -> None:
    assert find_json(config)[0].code == "deepspeed_value_invalid"


def test_stage_0_is_refused() -> None:
    [conflict] = find(deepspeed={"config": {"zero_optimization": {"stage": 0}}})

    assert conflict.code == "zero_stage_0_not_supported"


def test_merging_takes_over_what_tunes_and_nothing_that_the_run_decides() -> None:
    ours = {
        "train_batch_size": 16,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
    }

    merged = merge_deepspeed_json(ours, COMMON)

    assert merged == {
        "train_batch_size": 16,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "steps_per_print": 2000,
        "wall_clock_breakdown": False,
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "overlap_comm": True,
            "stage3_max_live_parameters": 1e9,
        },
    }
