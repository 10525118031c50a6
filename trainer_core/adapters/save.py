"""Saving a LoRA adapter as a PEFT folder: weights, configuration, tokenizer and chat template. Nothing of the base.

`base_model.json` beside them says which base it was trained on: {"id", "revision", "fingerprint"}.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers.utils.hub import cached_file

from trainer_core.adapters.fingerprint import compute_base_fingerprint
from trainer_core.training_state import whole

WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "base_model.json"


def gather_adapter(model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors by PEFT's names, on the CPU. Every rank must call this.

    Under ZeRO-3 a rank holds a part of each weight, and what a plain save writes then is a file of 40 bytes: the
    weights are put together first.
    """
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with whole(list(trainable.values())):
        weights = {name: weight.detach().to("cpu", copy=True) for name, weight in trainable.items()}
    tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(model, weights, save_embedding_layers=False)
    assert len(tensors) == len(trainable)
    assert all(tensor.numel() for tensor in tensors.values())
    return tensors


def write_adapter(
    folder: Path, config: PeftConfig, tensors: dict[str, torch.Tensor], tokenizer: Any, *, model_id: str
) -> None:
    """Fill a folder with the adapter. `model_id` is what it names as its base, never a path on this machine.

    The configuration is as PEFT made it, with the base's real place.
    """
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    fingerprint = compute_fingerprint(str(config.base_model_name_or_path), config.revision)
    base = {"id": model_id, "revision": config.revision, "fingerprint": fingerprint}
    (folder / BASE_FILE).write_text(json.dumps(base, indent=1), encoding="utf-8")
    published = copy.copy(config)
    published.base_model_name_or_path, published.inference_mode = model_id, True
    published.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)


def compute_fingerprint(source: str, revision: str | None) -> str:
    """Of a base that was loaded from a folder, or from the hub's cache by its id."""
    config_file = cached_file(source, "config.json", revision=revision)
    assert config_file is not None  # it raises OSError instead
    return compute_base_fingerprint(Path(config_file).parent)
