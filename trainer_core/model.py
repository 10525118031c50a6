"""The base model from a folder or the hub's cache, and the LoRA adapter on it."""

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from trainer_core.config import TrainingConfig
from trainer_core.errors import ConfigurationError, ModelError
from trainer_core.fused_lora import fuse_lora
from trainer_core.model_files import check_model_folder
from trainer_core.run_dir import ModelSource

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_base_model(source: ModelSource, training: TrainingConfig, device: torch.device | None) -> Any:
    """Frozen. `device` None leaves placement to DeepSpeed (stage 3 cuts the weights while they load)."""
    if Path(source.source).is_dir():
        for problem in check_model_folder(Path(source.source)):
            raise ModelError(problem.code, problem.message, remedy=problem.remedy)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.source,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
            dtype=DTYPES[training.precision],
            quantization_config=_build_quantization(training),
            device_map=None if device is None else {"": device},
        )
    except (OSError, ValueError, ImportError, SafetensorError, UnpicklingError) as error:
        raise ModelError(
            "model_not_loadable",
            f"The model {source.id} cannot be loaded: {error}",
            remedy="Check the model's folder or hub name and revision, and that it was downloaded before the run.",
        ) from error
    # Not peft's prepare_model_for_kbit_training: it casts every 16-bit parameter to fp32, embeddings included, and so
    # takes more memory than quantisation saves.
    model.requires_grad_(False)
    return model


def _build_quantization(training: TrainingConfig) -> BitsAndBytesConfig | None:
    if training.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    if training.quantization == "4bit":
        dtype = DTYPES[training.precision]
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype,  # ZeRO-3 cuts only weights that are stored in the model's own dtype
        )
    return None


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raises ModelError when the tokenizer knows tokens that the model has no embedding for."""
    num_embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_embeddings:
        raise ModelError(
            "vocabulary_too_small",
            f"The tokenizer has {len(tokenizer)} tokens, the model embeds only {num_embeddings}.",
            remedy="Use the tokenizer that belongs to the model, or resize the model's embeddings beforehand.",
        )


def add_lora(
    model: Any, training: TrainingConfig, *, revision: str | None, recompute: bool, float32_adapter: bool
) -> PeftModel:
    """`recompute`: activations in the backward pass; `revision`: the base's, which the adapter names.

    Raises ConfigurationError when target modules match nothing.
    """
    lora = training.lora
    if lora.target_modules != "all-linear":
        _check_target_modules(model, lora.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides by r, and a fraction is as good
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        revision=revision,
    )
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()  # else a frozen embedding's output carries no gradient into the first block
    peft_model = get_peft_model(model, config, autocast_adapter_dtype=float32_adapter)
    fuse_lora(peft_model)
    num_trainable = sum(getattr(p, "ds_numel", p.numel()) for p in peft_model.parameters() if p.requires_grad)
    log.info("adapter r=%d on %d modules, %d weights", lora.r, len(_list_adapted(peft_model)), num_trainable)
    return peft_model


def _check_target_modules(model: Any, names: list[str]) -> None:
    head = model.get_output_embeddings()  # which gives the loss itself, and is no place for an adapter
    layers = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module != head
    }
    unmatched = [name for name in names if not any(f".{path}".endswith(f".{name}") for path in layers)]
    if unmatched:
        known = sorted({path.rpartition(".")[2] for path in layers})
        raise ConfigurationError(
            "target_modules_match_nothing",
            f"lora.target_modules {unmatched} match no linear layer of the model; it has {known}.",
            remedy="Name layers that the model has, or use 'all-linear'.",
            available=known,
        )


def _list_adapted(model: PeftModel) -> list[str]:
    return [name for name, module in model.named_modules() if hasattr(module, "lora_A")]


def set_evaluation_mode(model: Any) -> None:
    """Dropout off, as model.eval() does, and nothing else.

    In eval mode bitsandbytes repacks 4-bit weights for the CPU in place; weights that ZeRO-3 has cut come out wrong.
    """
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True
