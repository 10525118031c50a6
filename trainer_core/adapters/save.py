"""Saving a LoRA adapter as a PEFT folder: weights, configuration, tokenizer and chat template. Nothing of the base.

Beside them `base_model.json` says which base it was trained on, and `environment.json` with what.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers.utils.hub import cached_file

from trainer_core.adapters.environment import read_environment
from trainer_core.adapters.fingerprint import compute_base_fingerprint
from trainer_core.adapters.manifest import BASE_FILE, ENVIRONMENT_FILE, WEIGHTS_FILE
from trainer_core.training_state import whole


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
    folder: Path,
    config: PeftConfig,
    tensors: dict[str, torch.Tensor],
    tokenizer: Any,
    *,
    model_id: str,
    device: torch.device,
) -> None:
    """Fill a folder with the adapter. `model_id` is what it names as its base, never a path on this machine.

    The configuration is as PEFT made it, with the base's real place.
    """
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    fingerprint = compute_fingerprint(str(config.base_model_name_or_path), config.revision)
    base = {"id": model_id, "revision": config.revision, "fingerprint": fingerprint}
    (folder / BASE_FILE).write_text(json.dumps(base, indent=1), encoding="utf-8")
    environment = read_environment("CPU" if device.type == "cpu" else torch.cuda.get_device_name(device))
    (folder / ENVIRONMENT_FILE).write_text(environment.model_dump_json(indent=1), encoding="utf-8")
    published = copy.copy(config)
    published.base_model_name_or_path, published.inference_mode = model_id, True
    published.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)


def compute_fingerprint(source: str, revision: str | None) -> str:
    """Of a base that was loaded from a folder, or from the hub's cache by its id."""
    config_file = cached_file(source, "config.json", revision=revision)
    assert config_file is not None  # it raises OSError instead
    return compute_base_fingerprint(Path(config_file).parent)
