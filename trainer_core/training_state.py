"""What a run has learned and where it stands, gathered from whatever engine trains it, and put back.

By the adapter's parameter names and whole: a checkpoint of eight ranks under ZeRO-3 goes on in one process without
DeepSpeed, and the other way round.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel

WeightState = dict[str, torch.Tensor]
"""`weight` in float32 and what the optimizer keeps of it (`exp_avg`, `exp_avg_sq`, `step`), on the CPU."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclasses.dataclass
class Progress:
    """Where a run stands after `step` optimizer steps."""

    step: int = 0
    num_tokens: int = 0
    """Trained on so far, over all ranks, without padding."""
    learning_rate_scale: float = 1.0
    recent_losses: list[float] = dataclasses.field(default_factory=list)
    best_eval_loss: float = math.inf
    num_stale_evaluations: int = 0
    """Validations since the best one."""


def collect_weights(model: PeftModel, optimizer: Any) -> dict[str, WeightState]:
    """The adapter's weights and their optimizer state by parameter name. Every rank must call this."""
    state = get_torch_optimizer(optimizer).state
    return {name: _collect_weight(weight, state) for name, weight in list_trainable(model)}


def restore_weights(model: PeftModel, optimizer: Any, saved: dict[str, WeightState]) -> None:
    """The inverse. Every rank must call this, after a first optimizer step has made the optimizer's state."""
    trainable = list_trainable(model)
    assert [name for name, _ in trainable] == list(saved)
    state = get_torch_optimizer(optimizer).state
    with whole([weight for _, weight in trainable]), torch.no_grad():
        for name, weight in trainable:
            weight.copy_(saved[name]["weight"])
    for name, weight in trainable:
        _restore_weight(weight, state, saved[name])
    # DeepSpeed keeps one state for many weights, and so one count of steps; CPUAdam counts in its own.
    steps = next(iter(saved.values()))["step"]
    for entry in state.values():
        entry["step"] = _like(entry["step"], steps)


def _collect_weight(weight: torch.nn.Parameter, state: dict[Any, Any]) -> WeightState:
    if not _belongs_to_deepspeed(weight):
        values = {"weight": weight.float(), **state[weight]}
        return {key: _to_cpu(torch.as_tensor(value)) for key, value in values.items()}
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state  # seconds to import

    step = torch.as_tensor(float(next(iter(state.values()))["step"]))
    moments = {key: _to_cpu(safe_get_full_optimizer_state(weight, key)) for key in _MOMENTS}
    return {"weight": _to_cpu(safe_get_full_fp32_param(weight)), **moments, "step": step}


def _restore_weight(weight: torch.nn.Parameter, state: dict[Any, Any], saved: WeightState) -> None:
    if not _belongs_to_deepspeed(weight):
        for key, value in saved.items():
            if key not in ("weight", "step"):
                state[weight][key] = value.to(weight.device)
        return
    from deepspeed import utils  # seconds to import

    if not hasattr(weight, "ds_id"):
        utils.safe_set_full_fp32_param(weight, saved["weight"])
        for key in _MOMENTS:
            utils.safe_set_full_optimizer_state(weight, saved[key], key)
        return
    # Not the full setters: they fail where a weight does not divide by the number of ranks.
    utils.safe_set_local_fp32_param(weight, _cut(weight, saved["weight"]))
    for key in _MOMENTS:
        utils.safe_set_local_optimizer_state(weight, _cut(weight, saved[key]), key)


def _cut(weight: Any, value: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor; ZeRO-3 fills the last one up."""
    size, rank = weight.ds_tensor.numel(), torch.distributed.get_rank()
    flat = value.flatten()
    return F.pad(flat, (0, max(0, size * (rank + 1) - flat.numel())))[size * rank : size * (rank + 1)]


def list_trainable(model: PeftModel) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def whole(weights: list[torch.nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
    """Puts weights together that ZeRO-3 has cut, and cuts them anew, from rank 0's, when it ends."""
    if not hasattr(weights[0], "ds_id"):
        return contextlib.nullcontext()
    import deepspeed  # its import takes seconds and only runs with ZeRO-3 need it

    return deepspeed.zero.GatheredParameters(weights, modifier_rank=0)  # type: ignore[no-any-return]


def get_torch_optimizer(optimizer: Any) -> Any:
    """The innermost of the optimizers that accelerate and DeepSpeed put around each other."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def reset_step_count(optimizer: Any) -> None:
    """As before the first step; Adam's bias correction depends on it. Every rank must call this after a first step."""
    for entry in get_torch_optimizer(optimizer).state.values():
        entry["step"] = _like(entry["step"], torch.zeros(()))
    sharded: Any = getattr(optimizer, "optimizer", None)
    if hasattr(sharded, "_hp_optimizer_states_linked"):
        # ZeRO-1 and ZeRO-2 connect weights with their state after the first group's step, before others have a state.
        sharded._hp_optimizer_states_linked = False
        sharded._lazy_init_hp_params_optimizer_state()


def collect_random_states(accelerator: Accelerator) -> list[dict[str, Any]]:
    """Every rank's random state, in the order of the ranks. Every rank must call this."""
    return list(gather_object([get_random_state(accelerator.device)]))


def restore_random_states(accelerator: Accelerator, states: list[dict[str, Any]], seed: int) -> None:
    """This rank's own; with another number of ranks than before, a seed that no rank has used."""
    if len(states) != accelerator.num_processes:
        torch.manual_seed(seed)
        return
    set_random_state(accelerator.device, states[accelerator.process_index])


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Of the CPU, and of the device where it is another."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_random_state(device: torch.device, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """What happens inside leaves no trace in the random numbers after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _belongs_to_deepspeed(weight: torch.nn.Parameter) -> bool:
    return hasattr(weight, "ds_id") or hasattr(weight, "_hp_mapping")


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _like(old: Any, new: torch.Tensor) -> Any:
    """A count in the type that it had: torch's optimizers keep a tensor, DeepSpeed's CPUAdam a number."""
    return new.to(old.device, old.dtype, copy=True) if torch.is_tensor(old) else int(new)
