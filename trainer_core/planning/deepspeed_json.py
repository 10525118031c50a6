"""A user's own DeepSpeed JSON: what it may say, where it contradicts the run, and how it joins the run's. Torch-free.

Three kinds of keys: those that the run decides itself (they must agree with it, or be "auto", or be left out), those
that tune DeepSpeed (taken over), and all others, which are refused by name: they replace the optimizer or the loop,
write files, or are unknown.
"""

import dataclasses
from typing import Any, Literal, cast

from trainer_core.config import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Conflict:
    """Why a configuration cannot train."""

    code: str
    field: str
    """Dotted path in the training configuration."""
    message: str
    remedy: str


_FIELD = "deepspeed.config"
_TUNING = {"steps_per_print", "wall_clock_breakdown", "dump_state", "communication_data_type"}
_ZERO_TUNING = {
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "ignore_unused_parameters",
    "memory_efficient_linear",
    "overlap_comm",
    "reduce_bucket_size",
    "reduce_scatter",
    "round_robin_gradients",
    "stage3_gather_16bit_weights_on_model_save",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_model_persistence_threshold",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "stage3_use_all_reduce_for_fetch_params",
    "sub_group_size",
    "use_multi_rank_bucket_allreduce",
}
_OFFLOAD_TUNING = {
    "offload_optimizer": {"buffer_count", "fast_init", "pin_memory", "pipeline_read", "pipeline_write", "ratio"},
    "offload_param": {"buffer_count", "buffer_size", "max_in_cpu", "pin_memory"},
}
_FP16_TUNING = {"hysteresis", "initial_scale_power", "loss_scale", "loss_scale_window", "min_loss_scale"}

_ALLOWED: dict[str, set[str] | None] = {
    **dict.fromkeys(
        (*_TUNING, "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), None
    ),
    "gradient_clipping": None,
    "bf16": {"enabled"},
    "fp16": {"enabled", *_FP16_TUNING},
    "zero_optimization": {"stage", *_ZERO_TUNING, *_OFFLOAD_TUNING},
    "zero_optimization.offload_optimizer": {"device", *_OFFLOAD_TUNING["offload_optimizer"]},
    "zero_optimization.offload_param": {"device", *_OFFLOAD_TUNING["offload_param"]},
}
"""Keys of each section; None is a plain value."""

_REMEDIES = {
    "optimizer": "Leave it out; set optimizer, learning_rate and weight_decay in the training configuration.",
    "scheduler": "Leave it out; set lr_schedule and warmup_ratio in the training configuration.",
    "activation_checkpointing": "Leave it out; set gradient_checkpointing in the training configuration.",
    "torch_autocast": "Leave it out; set precision in the training configuration.",
    "amp": "Leave it out; set precision in the training configuration.",
}


def get_stage(training: TrainingConfig) -> Literal["auto", "none", 1, 2, 3]:
    """As asked for, or as the user's JSON says where the configuration leaves it open."""
    asked, named = training.deepspeed.stage, _get(training.deepspeed.config or {}, "zero_optimization.stage")
    if asked == "auto" and type(named) is int and named in (1, 2, 3):
        return cast(Literal[1, 2, 3], named)
    return asked


def find_json_conflicts(training: TrainingConfig, *, num_processes: int) -> list[Conflict]:
    """What is wrong with the user's DeepSpeed JSON; an empty list where there is none."""
    config = training.deepspeed.config
    if config is None:
        return []
    return [
        *_find_unknown_keys(config),
        *_find_stage_conflicts(training, config),
        *_find_value_conflicts(training, config, num_processes),
    ]


def merge_deepspeed_json(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The run's configuration with what the user's JSON adds to it. Ours wins; "auto" adds nothing.

    Theirs passed `find_json_conflicts`.
    """
    tuning = {key: value for key, value in theirs.items() if key in _TUNING}
    theirs_zero = theirs.get("zero_optimization", {})
    zero = {key: value for key, value in theirs_zero.items() if key in _ZERO_TUNING}
    for section, keys in _OFFLOAD_TUNING.items():
        if section in ours["zero_optimization"]:
            zero[section] = {key: value for key, value in theirs_zero.get(section, {}).items() if key in keys}
    return _merge(ours, {**tuning, "zero_optimization": zero})


def _merge(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in theirs.items() if value != "auto"}
    for key, value in ours.items():
        merged[key] = _merge(value, merged.get(key, {})) if isinstance(value, dict) else value
    return merged


def _find_unknown_keys(config: dict[str, Any], path: str = "") -> list[Conflict]:
    allowed = _ALLOWED[path] if path else {key for key in _ALLOWED if "." not in key}
    assert allowed is not None
    conflicts = []
    for key, value in config.items():
        full = f"{path}.{key}" if path else key
        if key not in allowed:
            conflicts.append(_refuse_key(full))
        elif _ALLOWED.get(full) is not None and not isinstance(value, dict):
            conflicts.append(_refuse_value(full, value, "a JSON object"))
        elif isinstance(value, dict):
            conflicts += (
                _find_unknown_keys(value, full) if _ALLOWED.get(full) else [_refuse_value(full, value, "no object")]
            )
    return conflicts


def _find_stage_conflicts(training: TrainingConfig, config: dict[str, Any]) -> list[Conflict]:
    asked, named = training.deepspeed.stage, _get(config, "zero_optimization.stage")
    if named == 0:
        return [
            Conflict(
                "zero_stage_0_not_supported",
                f"{_FIELD}.zero_optimization.stage",
                "DeepSpeed's stage 0 divides nothing, and its bf16 losses drift away from those of every other stage.",
                "Leave deepspeed.config out and set deepspeed.stage to 'none', which trains with DDP; or name stage 1.",
            )
        ]
    if asked == "none" or get_stage(training) == "auto":
        message = (
            "deepspeed.stage is 'none'" if asked == "none" else "neither it nor deepspeed.stage names a ZeRO stage"
        )
        remedy = "Set deepspeed.stage to 1, 2 or 3, or leave deepspeed.config out."
        return [
            Conflict("deepspeed_stage_missing", "deepspeed.stage", f"There is a DeepSpeed JSON, and {message}.", remedy)
        ]
    return []


def _find_value_conflicts(training: TrainingConfig, config: dict[str, Any], num_processes: int) -> list[Conflict]:
    """What the run decides is compared; "auto" stands for the run's own value."""
    conflicts = []
    for key, (field, ours) in _list_decided_values(training, num_processes).items():
        theirs = _get(config, key)
        is_refused_already = key == "zero_optimization.stage" and theirs == 0
        if theirs not in (None, "auto", ours) and not is_refused_already:
            conflicts.append(
                Conflict(
                    "deepspeed_conflict",
                    f"{_FIELD}.{key}",
                    f"The DeepSpeed JSON sets {key} to {theirs!r}, and the run has {ours!r}.",
                    f"Make it {ours!r} or 'auto', or change {field} in the training configuration.",
                )
            )
    return conflicts


def _list_decided_values(training: TrainingConfig, num_processes: int) -> dict[str, tuple[str, Any]]:
    """The key in the JSON: (the field that decides it, its value)."""
    micro_batch_size, offload, stage = training.micro_batch_size, training.deepspeed.offload, get_stage(training)
    accumulation: int | str = "auto"
    if micro_batch_size != "auto":
        accumulation = training.global_batch_size // (micro_batch_size * num_processes)
    return {
        "train_batch_size": ("global_batch_size", training.global_batch_size),
        "train_micro_batch_size_per_gpu": ("micro_batch_size", micro_batch_size),
        "gradient_accumulation_steps": ("global_batch_size or micro_batch_size", accumulation),
        "gradient_clipping": ("max_grad_norm", training.max_grad_norm),
        "bf16.enabled": ("precision", training.precision == "bf16"),
        "fp16.enabled": ("precision", training.precision == "fp16"),
        "zero_optimization.stage": ("deepspeed.stage", stage),
        "zero_optimization.offload_optimizer.device": ("deepspeed.offload", offload),
        "zero_optimization.offload_param.device": ("deepspeed.offload", offload if stage == 3 else "none"),
    }


def _get(config: dict[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _refuse_key(key: str) -> Conflict:
    return Conflict(
        "deepspeed_key_not_allowed",
        f"{_FIELD}.{key}",
        f"The DeepSpeed JSON has {key}, which a run cannot take over.",
        _REMEDIES.get(key, "Leave it out."),
    )


def _refuse_value(key: str, value: Any, expected: str) -> Conflict:
    message = f"The DeepSpeed JSON sets {key} to {type(value).__name__} where {expected} belongs."
    return Conflict("deepspeed_value_invalid", f"{_FIELD}.{key}", message, "Correct it, or leave it out.")
