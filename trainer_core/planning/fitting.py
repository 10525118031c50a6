"""Which of a run's possible ways fits its hardware: engine, micro-batch and recomputation. Pure, torch-free."""

import dataclasses
from collections.abc import Iterator

from trainer_core.config import TrainingConfig
from trainer_core.planning.deepspeed_json import get_stage
from trainer_core.planning.hardware import Hardware
from trainer_core.planning.memory import Engine, MemoryPrediction, Offload, Stage, predict_host_memory, predict_memory
from trainer_core.planning.model_facts import ModelFacts

# What "auto" aims at: enough tokens for efficient matrix products, few enough for the activations to fit.
_GPU_TOKENS_PER_PASS = 8192
_CPU_TOKENS_PER_PASS = 1024


@dataclasses.dataclass(frozen=True)
class Case:
    """All that decides whether and how a run fits."""

    training: TrainingConfig
    facts: ModelFacts | None
    hardware: Hardware
    num_processes: int
    gpus: int
    longest_sequence: int

    @property
    def memory_bytes(self) -> int | None:
        """What one process may use; None is unknown."""
        if self.gpus > 0:
            return self.hardware.gpu_memory_bytes
        return None if self.host_memory_bytes is None else self.host_memory_bytes // self.num_processes

    @property
    def host_memory_bytes(self) -> int | None:
        """Of all hosts together; None is unknown."""
        host = self.hardware.host_memory_bytes
        return None if host is None else host * self.hardware.num_hosts


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to run. Memory is None where the model's shape is unknown."""

    engine: Engine
    micro_batch_size: int
    memory: MemoryPrediction | None
    host_memory_bytes: int | None


def find_choice(case: Case) -> Choice | None:
    """The fastest that fits, or None."""
    return next((choice for choice in iter_choices(case) if _fits(case, choice)), None)


def iter_choices(case: Case) -> Iterator[Choice]:
    """All that the configuration leaves open, the fastest first."""
    for engine in _list_engines(case):
        for size in _list_micro_batch_sizes(case):
            yield _predict(case, engine, size)


def _predict(case: Case, engine: Engine, micro_batch_size: int) -> Choice:
    if case.facts is None:
        return Choice(engine, micro_batch_size, None, None)
    memory = predict_memory(case.training, case.facts, engine, micro_batch_size * case.longest_sequence)
    host_memory_bytes = predict_host_memory(case.training, case.facts, engine, memory)
    return Choice(engine, micro_batch_size, memory, host_memory_bytes)


def _fits(case: Case, choice: Choice) -> bool:
    limit, host_limit = case.memory_bytes, case.host_memory_bytes
    fits_device = choice.memory is None or limit is None or choice.memory.peak <= limit
    fits_host = choice.host_memory_bytes is None or host_limit is None or choice.host_memory_bytes <= host_limit
    return fits_device and fits_host


def _list_engines(case: Case) -> Iterator[Engine]:
    """The fastest first: recomputing costs up to half as much time again, cutting the base and offload far more."""
    asked = case.training.gradient_checkpointing
    for stage, offload in _list_placements(case):
        for is_recomputed in (False, True) if asked == "auto" else (asked,):
            yield Engine(
                num_processes=case.num_processes,
                on_gpu=case.gpus > 0,
                stage=stage,
                offload=offload,
                gradient_checkpointing=is_recomputed,
            )


def _list_placements(case: Case) -> list[tuple[Stage, Offload]]:
    """ZeRO stage and offload, the fastest first. A frozen base gains nothing from stages 1 and 2 over DDP."""
    stage, offload = get_stage(case.training), case.training.deepspeed.offload
    if stage == "none" or case.training.optimizer == "adamw_8bit":
        return [(0, "none")]
    if stage == "auto":
        if offload == "cpu":
            return [(2, "cpu"), (3, "cpu")]
        placements: list[tuple[Stage, Offload]] = [(0, "none")]
        if case.num_processes > 1:
            placements.append((3, "none"))
        return [*placements, (3, "cpu")] if offload == "auto" else placements
    if offload == "cpu":
        return [(stage, "cpu")]
    return [(stage, "none"), (stage, "cpu")] if offload == "auto" and stage > 1 else [(stage, "none")]


def _list_micro_batch_sizes(case: Case) -> list[int]:
    """As asked for; else the divisors of a process's share that stay within the device's tokens, the largest first."""
    asked = case.training.micro_batch_size
    if asked != "auto":
        return [asked]
    per_process = case.training.global_batch_size // case.num_processes
    tokens = _GPU_TOKENS_PER_PASS if case.gpus > 0 else _CPU_TOKENS_PER_PASS
    most = max(1, min(per_process, tokens // case.longest_sequence))
    return [size for size in range(most, 0, -1) if per_process % size == 0]
