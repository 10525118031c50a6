"""Saving a LoRA adapter as a PEFT folder: weights, configuration, tokenizer and chat template. Nothing of the base."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

WEIGHTS_FILE = "adapter_model.safetensors"


def gather_adapter(model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors by PEFT's names, on the CPU. Every rank must call this.

    Under ZeRO-3 a rank holds a part of each weight, and what a plain save writes then is a file of 40 bytes: the
    weights are put together first.
    """
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with _whole(list(trainable.values())):
        weights = {name: weight.detach().to("cpu", copy=True) for name, weight in trainable.items()}
    tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(model, weights, save_embedding_layers=False)
    assert len(tensors) == len(trainable)
    assert all(tensor.numel() for tensor in tensors.values())
    return tensors


def _whole(weights: list[torch.nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
    if not hasattr(weights[0], "ds_id"):
        return contextlib.nullcontext()
    import deepspeed  # only where ZeRO-3 cut the weights: its import takes seconds

    return deepspeed.zero.GatheredParameters(weights)  # type: ignore[no-any-return]


def write_adapter(
    folder: Path, config: PeftConfig, tensors: dict[str, torch.Tensor], tokenizer: Any, *, model_id: str
) -> None:
    """Fill a folder with the adapter. `model_id` is what it names as its base, never a path on this machine."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    published = copy.copy(config)
    published.base_model_name_or_path, published.inference_mode = model_id, True
    published.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)
