"""The fused low-rank path is PEFT's, in value and gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from trainer_core.fused_lora import fuse_lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def build_adapter(demo_model: Path, dtype: torch.dtype, **options: Any) -> PeftModel:
    """With a B that is not zero, so that A has gradients."""
    base = AutoModelForCausalLM.from_pretrained(demo_model, dtype=dtype).requires_grad_(False)
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, target_modules="all-linear", **options)
    model = get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


def run(model: PeftModel, *, autocast: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and all gradients."""
    input_ids = torch.arange(5, 29).view(2, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=input_ids).logits.float()
    logits.logsumexp(-1).sum().backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("rslora", [False, True])
def test_it_is_pefts_in_float32(demo_model: Path, rslora: bool) -> None:
    fused = build_adapter(demo_model, torch.float32, use_rslora=rslora)
    fuse_lora(fused)
    expected = run(build_adapter(demo_model, torch.float32, use_rslora=rslora), autocast=False)
    torch.testing.assert_close(run(fused, autocast=False), expected, rtol=1e-4, atol=1e-4)


def test_it_is_no_farther_from_float32_than_pefts_in_bfloat16(demo_model: Path) -> None:
    exact_logits, exact_gradients = run(build_adapter(demo_model, torch.float32), autocast=False)
    errors = []
    for fuses in (True, False):
        model = build_adapter(demo_model, torch.bfloat16)
        if fuses:
            fuse_lora(model)
        logits, gradients = run(model, autocast=True)
        errors.append((float((logits - exact_logits).norm()), float((gradients - exact_gradients).norm())))
    assert errors[0][0] < 1.2 * errors[1][0]
    assert errors[0][1] < 1.2 * errors[1][1]


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_layers_that_are_more_than_two_matrices_stay_pefts(demo_model: Path, options: dict[str, Any]) -> None:
    model = build_adapter(demo_model, torch.float32, **options)
    fuse_lora(model)
    assert all(getattr(module, "cast_input_dtype_enabled", True) for module in model.modules())


def test_an_adapter_that_is_switched_off_leaves_the_base_as_it_is(demo_model: Path) -> None:
    model = build_adapter(demo_model, torch.float32)
    fuse_lora(model)
    input_ids = torch.arange(5, 29).view(2, 12)
    expected = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)(input_ids=input_ids).logits
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=input_ids).logits, expected)
