"""What a run changes in its plan when memory runs out or the loss blows up, and when it gives up. Pure, torch-free."""

import statistics
from collections.abc import Sequence

from trainer_core.config import TrainingConfig
from trainer_core.planning.plan import Plan, PlanChange

MAX_CHANGES = 8
"""Enough to halve 128 sequences to one and to recompute; more would mean that something else is wrong."""
LEARNING_RATE_FACTOR = 0.5
"""What a blown-up loss lowers the learning rate by, once."""

NUM_RECENT_LOSSES = 32
_MIN_RECENT_LOSSES = 16
_SPIKE_FACTOR = 2.0
_SPIKE_MARGIN = 1.0


def is_spike(loss: float, recent: Sequence[float]) -> bool:
    """Whether a step's loss is more than twice the recent steps' median, and 1 nat above it.

    Both, since near zero a doubling is noise. Steps differ by their rows, but not by that much: training has diverged.
    """
    if len(recent) < _MIN_RECENT_LOSSES:
        return False
    usual = statistics.median(recent)
    return loss > max(_SPIKE_FACTOR * usual, usual + _SPIKE_MARGIN)


def revise_plan(plan: Plan, training: TrainingConfig, code: str) -> Plan | None:
    """A plan with which the run can go on after an error of this code, or None: it must end."""
    if len(plan.changes) >= MAX_CHANGES:
        return None
    if code == "out_of_memory":
        return halve_micro_batch(plan) or _recompute(plan, training) or _offload(plan, training)
    if code in ("loss_not_finite", "loss_spike") and plan.learning_rate_scale == 1.0:
        change = f"the learning rate is multiplied by {LEARNING_RATE_FACTOR}"
        return _change(plan, code, change, learning_rate_scale=LEARNING_RATE_FACTOR)
    return None


def halve_micro_batch(plan: Plan) -> Plan | None:
    """The same sequences per optimizer step in more and smaller micro-batches; None when they cannot be smaller."""
    per_rank = plan.micro_batch_size * plan.accumulation
    sizes = [size for size in range(1, plan.micro_batch_size // 2 + 1) if per_rank % size == 0]
    if not sizes:
        return None
    size = sizes[-1]
    change = f"micro-batches of {size} instead of {plan.micro_batch_size} sequences"
    return _change(plan, "out_of_memory", change, micro_batch_size=size, accumulation=per_rank // size)


def _recompute(plan: Plan, training: TrainingConfig) -> Plan | None:
    if plan.gradient_checkpointing or training.gradient_checkpointing is False:
        return None
    change = "activations are computed anew in the backward pass"
    return _change(plan, "out_of_memory", change, gradient_checkpointing=True)


def _offload(plan: Plan, training: TrainingConfig) -> Plan | None:
    """Only where the client left the engine open."""
    deepspeed = training.deepspeed
    is_open = deepspeed.offload == "auto" and deepspeed.stage in ("auto", 3) and training.optimizer == "adamw"
    if plan.offload != "none" or not is_open:
        return None
    return _change(plan, "out_of_memory", "ZeRO-3 keeps the base in the CPU's memory", stage=3, offload="cpu")


def _change(plan: Plan, reason: str, change: str, **values: object) -> Plan:
    entry = PlanChange.model_validate({"reason": reason, "change": change})
    return plan.model_copy(update={**values, "changes": [*plan.changes, entry]})
