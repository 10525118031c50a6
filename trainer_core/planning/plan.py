"""How a run will use its hardware: (configuration, model, hardware) -> Plan, or a refusal with numbers. Torch-free.

The API answers `POST /jobs?dry_run=true` with it, and the trainer follows it: nothing else decides on engine, batch
sizes or recomputation. The trainer keeps its plan in `plan.json` and changes it there when memory runs out or the loss
blows up.
"""

import dataclasses
import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

from trainer_core.config import TrainingConfig
from trainer_core.errors import ConfigurationError
from trainer_core.planning.compatibility import find_conflicts
from trainer_core.planning.fitting import Case, Choice, find_choice
from trainer_core.planning.hardware import Hardware
from trainer_core.planning.memory import MemoryPrediction, Offload, Stage, predict_disk
from trainer_core.planning.model_facts import ModelFacts, check_model_facts
from trainer_core.planning.refusal import build_refusal

_UNKNOWN = Hardware()


class PlanChange(BaseModel):
    """What the trainer changed in its plan, and why."""

    reason: Literal["out_of_memory", "loss_not_finite", "loss_spike"]
    change: str


class Plan(BaseModel):
    """Decisions of one run, and what they are predicted to take. A trainer without DeepSpeed has the stage 0."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    num_processes: int
    stage: Stage
    """ZeRO stage; 0 is one process, or DDP for several."""
    offload: Offload
    micro_batch_size: int
    """Sequences per forward pass and process."""
    accumulation: int
    """Micro-batches per optimizer step and process."""
    gradient_checkpointing: bool
    precision: Literal["bf16", "fp16", "fp32"]
    quantization: Literal["none", "8bit", "4bit"]
    micro_batch_tokens: int
    """In the largest micro-batch."""
    memory: MemoryPrediction | None = None
    """Of one process; null where the model's shape is unknown."""
    host_memory_bytes: int | None = None
    """Of all processes together."""
    disk_bytes: int | None = None
    """Of the run folder."""
    num_steps: int | None = None
    """Null where the number of rows is unknown."""
    num_tokens: int | None = None
    """To train on, over all epochs."""
    seconds: float | None = None
    """Of training, where the throughput is known."""
    made_from: str = ""
    """RunSpec.digest_plan of the spec that it was made for."""
    learning_rate_scale: float = 1.0
    """Lowered when the loss blew up."""
    changes: list[PlanChange] = []

    @property
    def uses_deepspeed(self) -> bool:
        return self.stage > 0

    @property
    def engine(self) -> str:
        """For people."""
        if self.uses_deepspeed:
            return f"ZeRO-{self.stage}"
        return "DDP" if self.num_processes > 1 else "one process"


@dataclasses.dataclass(frozen=True)
class Workload:
    """How many rows there are, arranged into sequences, and how fast such rows were trained before."""

    num_sequences: int
    """In one epoch."""
    num_tokens: int
    """In one epoch."""
    tokens_per_second: float | None = None
    """Over all processes; None is unknown."""


def plan_training(
    training: TrainingConfig,
    *,
    num_processes: int,
    gpus: int,
    longest_sequence: int,
    facts: ModelFacts | None = None,
    hardware: Hardware = _UNKNOWN,
    workload: Workload | None = None,
) -> Plan:
    """The fastest way that fits. Without facts or a memory size nothing is refused for memory.

    Raises ConfigurationError, ModelError.
    """
    conflicts = find_conflicts(training, num_processes=num_processes)
    if conflicts:
        first = conflicts[0]
        others = [dataclasses.asdict(conflict) for conflict in conflicts]
        raise ConfigurationError(first.code, first.message, remedy=first.remedy, field=first.field, conflicts=others)
    if facts is not None:
        check_model_facts(training, facts)
    case = Case(training, facts, hardware, num_processes, gpus, longest_sequence)
    choice = find_choice(case)
    if choice is None:
        raise build_refusal(case)
    return _build_plan(case, choice).model_copy(update=_count_work(training, facts, workload))


def count_sequences_to_train(training: TrainingConfig, num_sequences: int) -> int:
    """Over all epochs, of which the last may be a part; or as many as `max_steps` takes."""
    if training.max_steps is not None:
        return training.max_steps * training.global_batch_size
    return round(training.epochs * num_sequences) or 1


def _build_plan(case: Case, choice: Choice) -> Plan:
    training, engine, size = case.training, choice.engine, choice.micro_batch_size
    return Plan(
        num_processes=case.num_processes,
        stage=engine.stage,
        offload=engine.offload,
        micro_batch_size=size,
        accumulation=training.global_batch_size // (size * case.num_processes),
        gradient_checkpointing=engine.gradient_checkpointing,
        precision=training.precision,
        quantization=training.quantization,
        micro_batch_tokens=size * case.longest_sequence,
        memory=choice.memory,
        host_memory_bytes=choice.host_memory_bytes,
    )


def _count_work(training: TrainingConfig, facts: ModelFacts | None, workload: Workload | None) -> dict[str, object]:
    disk_tokens = workload.num_tokens if workload else 0
    counts: dict[str, object] = {"disk_bytes": facts and predict_disk(training, facts, disk_tokens)}
    if workload is not None:
        num_sequences = count_sequences_to_train(training, workload.num_sequences)
        num_tokens = math.ceil(workload.num_tokens * num_sequences / workload.num_sequences)
        counts |= {"num_steps": -(-num_sequences // training.global_batch_size), "num_tokens": num_tokens}
        if workload.tokens_per_second:
            counts["seconds"] = num_tokens / workload.tokens_per_second
    return counts
