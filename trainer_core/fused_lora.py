"""The low-rank path of a LoRA layer as one step of autograd, in place of PEFT's five.

PEFT casts the input to the adapter's float32, casts it back for the products, scales and adds in separate passes over
[tokens, features], and keeps a copy of the input for each layer. Here the scale is folded into B, the product is added
by the matrix product itself, and only the input that the base layer holds anyway is kept.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, LoraVariant


def fuse_lora(model: PeftModel) -> None:
    """For all plain LoRA layers without dropout; the adapter's weights stay PEFT's own, as does how they are saved."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and _is_plain(layer):
            layer.lora_variant["default"] = _FusedLora()
            layer.cast_input_dtype_enabled = False


def _is_plain(layer: LoraLayer) -> bool:
    """Two matrices and a scale: no dropout, no variant such as DoRA.

    Nor weights that ZeRO-3 has cut: they are whole only inside their own modules.
    """
    has_dropout = not isinstance(layer.lora_dropout["default"], torch.nn.Identity)
    return not (has_dropout or layer.lora_variant or hasattr(layer.get_base_layer().weight, "ds_id"))


class _FusedLora(LoraVariant):
    """PEFT calls it in place of its own low-rank path."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any) -> torch.Tensor:
        a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        output: torch.Tensor = _AddLowRank.apply(result, x, a, b, module.scaling[active_adapter])  # type: ignore[no-untyped-call]
        return output


class _AddLowRank(torch.autograd.Function):
    """y + scaling * x A^T B^T, written into y.

    y [..., out], x [..., in], A [r, in], B [out, r]; products in y's dtype, gradients of A and B in their own.
    """

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        a_low, b_low = a.to(y.dtype), (b * scaling).to(y.dtype)
        with torch.autocast(y.device.type, enabled=False):
            low = x.to(y.dtype).flatten(0, -2) @ a_low.T
            y.view(-1, y.shape[-1]).addmm_(low, b_low.T)  # never a copy: the sum would be lost
        ctx.save_for_backward(x, low, a_low, b_low)
        ctx.scaling, ctx.dtypes = scaling, (a.dtype, b.dtype)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, a_low, b_low = ctx.saved_tensors
        a_dtype, b_dtype = ctx.dtypes
        flat = gradient.flatten(0, -2)
        low_gradient = flat @ b_low
        a_gradient = (low_gradient.T @ x.to(flat.dtype).flatten(0, -2)).to(a_dtype)
        b_gradient = (flat.T @ low).to(b_dtype) * ctx.scaling
        x_gradient = (low_gradient @ a_low).view_as(x).to(x.dtype) if ctx.needs_input_grad[1] else None
        return gradient, x_gradient, a_gradient, b_gradient, None
