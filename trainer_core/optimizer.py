"""The optimizer of the adapter's weights."""

from typing import Any

import torch
from peft import PeftModel

from trainer_core.config import TrainingConfig
from trainer_core.training_state import list_trainable


def build_optimizer(training: TrainingConfig, adapter: PeftModel) -> torch.optim.Optimizer:
    """AdamW, fused or with a state of 8 bits.

    With LoRA+ (Hayou et al. 2024, arXiv 2402.12354) the B matrices, which begin at zero, learn at a multiple of the
    rate.
    """
    trainable = list_trainable(adapter)
    b_matrices = [weight for name, weight in trainable if ".lora_B." in name]
    others = [weight for name, weight in trainable if ".lora_B." not in name]
    groups: list[dict[str, Any]] = [{"params": [weight for _, weight in trainable], "rate_ratio": 1.0}]
    if training.lora.plus_ratio is not None:
        groups = [
            {"params": others, "rate_ratio": 1.0},
            {"params": b_matrices, "rate_ratio": training.lora.plus_ratio},
        ]
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "adamw_8bit":
        from bitsandbytes.optim.adamw import AdamW8bit  # its import takes a second, and loads CUDA libraries

        return AdamW8bit(groups, lr=rate, weight_decay=decay)  # type: ignore[no-untyped-call]
    return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_ratio"]
