"""The planner's list of what autograd keeps is what autograd keeps, tensor for tensor, on small Llamas."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.trainer_core.shapes import build_llama_facts
from trainer_core.config import TrainingConfig
from trainer_core.fused_lora import fuse_lora
from trainer_core.planning.memory import Engine, predict_memory

TOKENS = 128
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build_model(num_layers: int, training: TrainingConfig, *, float32_adapter: bool) -> PeftModel:
    base: Any = LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=num_layers))
    base.to(torch.float32 if training.precision == "fp32" else torch.bfloat16).requires_grad_(False)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = get_peft_model(base, lora, autocast_adapter_dtype=float32_adapter)
    fuse_lora(model)
    return model


def measure_kept_bytes(num_layers: int, training: TrainingConfig, *, float32_adapter: bool) -> int:
    """Storages that the backward pass needs and that are no weights, each counted once."""
    model: Any = build_model(num_layers, training, float32_adapter=float32_adapter)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids, positions = torch.zeros(1, TOKENS, dtype=torch.long), torch.arange(TOKENS)[None]
    uses_autocast = training.precision == "bf16" and float32_adapter
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=uses_autocast),
    ):
        output = model.get_base_model().model(input_ids=ids, position_ids=positions, use_cache=False)
    assert output.last_hidden_state.requires_grad
    return sum(kept.values())


def predict_kept_bytes(num_layers: int, training: TrainingConfig, *, stage: int) -> int:
    facts = build_llama_facts({**SHAPE, "num_hidden_layers": num_layers})
    engine = Engine.model_validate(
        {"num_processes": 1, "on_gpu": True, "stage": stage, "offload": "none", "gradient_checkpointing": False}
    )
    return predict_memory(training, facts, engine, TOKENS).activations


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("settings", "stage"),
    [({}, 0), ({}, 2), ({"precision": "fp32"}, 0)],
    ids=["bf16 with a float32 adapter", "bf16", "fp32"],
)
def test_a_layer_keeps_what_is_predicted(settings: dict[str, Any], stage: int) -> None:
    """The difference of three layers and two; what is left is of the rank's width, or does not grow with tokens."""
    training = TrainingConfig.model_validate(settings)

    measured = measure_kept_bytes(3, training, float32_adapter=stage == 0)
    measured -= measure_kept_bytes(2, training, float32_adapter=stage == 0)
    predicted = predict_kept_bytes(3, training, stage=stage) - predict_kept_bytes(2, training, stage=stage)

    assert predicted <= measured <= 1.1 * predicted
