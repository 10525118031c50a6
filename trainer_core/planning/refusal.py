"""Why a run does not fit, in numbers, and the nearest change with which it would. Pure, torch-free."""

import dataclasses

from trainer_core.config import TrainingConfig
from trainer_core.errors import ConfigurationError
from trainer_core.planning.compatibility import find_conflicts
from trainer_core.planning.fitting import Case, find_choice, iter_choices

_SHORTEST_SUGGESTION = 256


def build_refusal(case: Case) -> ConfigurationError:
    """With what the thriftiest plan would take, and the nearest changes with which there is one."""
    needed, host_needed = min((c.memory.peak, c.host_memory_bytes or 0) for c in iter_choices(case) if c.memory)
    limit, host_limit = case.memory_bytes, case.host_memory_bytes
    if limit is not None and needed > limit:
        place = "each GPU" if case.gpus else "the machine, for each process,"
        message = f"Training needs {_format(needed)} of memory per process, and {place} has {_format(limit)}."
    else:
        message = f"Training needs {_format(host_needed)} of the host's memory, which has {_format(host_limit or 0)}."
    changes = _list_remedies(case)
    larger = "larger GPUs, or more of them" if case.gpus else "a machine with more memory"
    remedy = f"Use {', or '.join(changes)}." if changes else f"No one setting makes it fit: use {larger}."
    return ConfigurationError(
        "does_not_fit",
        message,
        remedy=remedy,
        field="training",
        needed_bytes=needed,
        available_bytes=limit,
        host_needed_bytes=host_needed,
        host_available_bytes=host_limit,
    )


def _list_remedies(case: Case) -> list[str]:
    """Single changes with which the run fits; where there is none, those beside 4-bit weights."""
    quantized = _change(case, "quantization", "4bit")
    if _is_possible(quantized):
        return ["quantization '4bit'", *_list_changes(case)]
    return _list_changes(case) or [f"quantization '4bit' with {change}" for change in _list_changes(quantized)]


def _list_changes(case: Case) -> list[str]:
    training, found = case.training, []
    for field, value in (
        ("gradient_checkpointing", "auto"),
        ("micro_batch_size", "auto"),
        ("deepspeed.stage", "auto"),
        ("deepspeed.offload", "auto"),
    ):
        if _is_possible(_change(case, field, value)):
            found.append(f"{field} '{value}'")
    lengths = (2**power for power in range(20, 0, -1))
    shorter = (n for n in lengths if _SHORTEST_SUGGESTION <= n < min(training.max_seq_len, case.longest_sequence))
    fitting = next((length for length in shorter if _is_possible(_change(case, "max_seq_len", length))), None)
    return found if fitting is None else [*found, f"max_seq_len {fitting}"]


def _is_possible(case: Case) -> bool:
    return not find_conflicts(case.training, num_processes=case.num_processes) and find_choice(case) is not None


def _change(case: Case, field: str, value: object) -> Case:
    """The same with one setting changed, which may be one of `deepspeed`."""
    section, _, name = field.rpartition(".")
    settings = case.training.model_dump()
    (settings[section] if section else settings)[name] = value
    training = TrainingConfig.model_validate(settings)
    return dataclasses.replace(
        case, training=training, longest_sequence=min(case.longest_sequence, training.max_seq_len)
    )


def _format(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
