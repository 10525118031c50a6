"""What a dry run answers."""

from typing import Literal

from api.pages import ReadModel
from jobs.planning import JobPlan
from jobs.spec import JobSpec
from trainer_core.planning.memory import MemoryPrediction
from trainer_core.planning.plan import Plan


class PlanWarning(ReadModel):
    code: str
    message: str


class PlanRead(ReadModel):
    """What a job would take. Bytes and tokens are predictions, none of them a promise."""

    object: Literal["plan"] = "plan"
    model: str
    engine: str
    """`one process`, `DDP`, or `ZeRO-` and its stage."""
    offload: str
    precision: str
    quantization: str
    num_gpus: int
    """0 trains on the CPU."""
    num_processes: int
    gpu_name: str | None
    gpu_memory_bytes: int | None
    """Of each GPU of the worker that the plan is for; null where none is known."""
    micro_batch_size: int
    """Sequences per forward pass and process."""
    micro_batch_tokens: int
    accumulation: int
    """Micro-batches per optimizer step and process."""
    gradient_checkpointing: bool
    memory: MemoryPrediction | None
    """Of each process, on its GPU; null where the model's shape is unknown."""
    host_memory_bytes: int | None
    """Of all processes together."""
    disk_bytes: int | None
    """Of the run folder."""
    rows: int | None
    """Of the dataset; null until it is checked."""
    num_steps: int | None
    num_tokens: int | None
    """To train on, over all epochs; estimated from the rows' characters."""
    seconds: float | None
    """Of training; null until a job with this model and quantization has succeeded."""
    warnings: list[PlanWarning]


def read_plan(spec: JobSpec, job_plan: JobPlan) -> PlanRead:
    plan, hardware = job_plan.plan, job_plan.hardware
    taken_over = set(PlanRead.model_fields) & set(Plan.model_fields)
    return PlanRead(
        **plan.model_dump(include=taken_over),
        model=spec.model,
        engine=plan.engine,
        num_gpus=job_plan.num_gpus,
        gpu_name=hardware.gpu_name,
        gpu_memory_bytes=hardware.gpu_memory_bytes,
        rows=job_plan.estimate.num_rows if job_plan.estimate else None,
        warnings=[PlanWarning(code=code, message=message) for code, message in job_plan.warnings.items()],
    )
