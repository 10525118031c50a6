"""Weights of another adapter, as which a run's own begin."""

import json
import logging
from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from trainer_core.adapters.manifest import BASE_FILE, WEIGHTS_FILE
from trainer_core.adapters.save import compute_fingerprint, gather_adapter
from trainer_core.errors import ConfigurationError
from trainer_core.run_dir import ModelSource
from trainer_core.training_state import list_trainable, whole

log = logging.getLogger(__name__)

_SCALE = ("r", "lora_alpha", "use_rslora", "use_dora")


def load_initial_weights(adapter: PeftModel, folder: Path, model: ModelSource) -> None:
    """Put the weights of the adapter in `folder` into a fresh one. Every rank must call this.

    Raises ConfigurationError for one of another base or another shape, and for what is no adapter.
    """
    try:
        base = json.loads((folder / BASE_FILE).read_bytes())
        config = json.loads((folder / "adapter_config.json").read_bytes())
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise _refuse("init_from_invalid", f"what init_from names is no adapter: {error}") from error
    if base["fingerprint"] != compute_fingerprint(model.source, model.revision):
        raise _refuse("init_from_other_base", f"the adapter that init_from names was not trained on {model.id}")
    own: Any = adapter.peft_config["default"]
    differing = [name for name in _SCALE if config.get(name) != getattr(own, name)]
    shapes = {name: tensor.shape for name, tensor in gather_adapter(adapter).items()}
    if differing or shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        what = ", ".join(differing) or "the layers that are adapted"
        raise _refuse("init_from_mismatch", f"the adapter that init_from names has another shape: {what}")
    with whole([weight for _, weight in list_trainable(adapter)]):
        set_peft_model_state_dict(adapter, tensors)
    log.info("the adapter begins with the weights in %s, %d tensors", folder.name, len(tensors))


def _refuse(code: str, message: str) -> ConfigurationError:
    remedy = "Name an adapter of the same base with the same training.lora, or leave init_from out."
    return ConfigurationError(code, message[0].upper() + message[1:] + ".", remedy=remedy, field="init_from")
