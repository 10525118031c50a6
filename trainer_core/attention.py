"""Attention over rows laid one after another in a single sequence, each row by itself: no padding, no mask.

A row attends to nothing before it, so that packed rows cost what they cost alone. Registered with transformers as
`medtune_rows`; a model switched to it is told the rows by its forward's keyword arguments. Without them it does what
`sdpa` does, mask and cache included, so that the same model also generates.
"""

import contextlib
import contextvars
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ROW_ATTENTION = "medtune_rows"

# Beyond causal softmax attention: what transformers passes to attention functions when a layer has it.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")
# Fewer key heads than query heads need no word before PyTorch 2.12.
_GROUPED_HEADS: Any = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

_rows_are_given = contextvars.ContextVar("rows_are_given", default=False)


class RowAttentionError(Exception):
    """The model's attention is not plain causal softmax attention."""


def use_row_attention(model: Any) -> bool:
    """Switch a transformers model to it, if its attention is of the kind. Whether it is."""
    if model._can_set_attn_implementation() and _is_plain_and_causal(model.config.get_text_config()):
        model.set_attn_implementation(ROW_ATTENTION)
    return has_row_attention(model)


def _is_plain_and_causal(config: Any) -> bool:
    """As far as a model's configuration tells; the rest shows when it runs."""
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    others = ("sliding_window", "attn_logit_softcapping", "attention_dropout")
    return layer_types == {"full_attention"} and not any(getattr(config, name, None) for name in others)


def drop_row_attention(model: Any) -> None:
    """Back to transformers' own."""
    model.set_attn_implementation("sdpa")


def has_row_attention(model: Any) -> bool:
    """Of a model in whatever PEFT, DDP or DeepSpeed wrap it."""
    return bool(unwrap(model).config._attn_implementation == ROW_ATTENTION)


def unwrap(model: Any) -> Any:
    """Without DDP or DeepSpeed."""
    return getattr(model, "module", model)


@contextlib.contextmanager
def rows_given(given: bool = True) -> Iterator[None]:
    """In here the model is told its rows, and need build no mask from their positions."""
    token = _rows_are_given.set(given)
    try:
        yield
    finally:
        _rows_are_given.reset(token)


def attend_in_rows(  # noqa: PLR0913  # transformers decides
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers.

    query [1, heads, N, head_dim], key and value [1, key_heads, N, head_dim]; gives [1, N, heads, head_dim].
    `cu_seq_lens_q` int32 [R + 1] says where the R rows start and end; `max_length_q` is the longest row.

    Raises RowAttentionError for layers with a sliding window, soft-capping, attention sinks or position biases.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return result
    if unsupported := [name for name in _UNSUPPORTED if options.get(name) is not None]:
        raise RowAttentionError(f"{type(module).__name__} has {', '.join(unsupported)}.")
    if _has_kernel(query, value):
        return _attend_by_kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    return _attend_row_by_row(query, key, value, cu_seq_lens_q.diff().tolist(), scaling), None


def _attend_by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    """FlashAttention over rows of any length, which PyTorch has for CUDA."""
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    output = varlen_attn(
        query, key, value, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0), **_GROUPED_HEADS
    )
    assert isinstance(output, torch.Tensor)
    return output[None]


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """FlashAttention 2 wants 16 bits, Ampere or newer, and heads of some sizes."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    head_dim = query.shape[-1]
    fits = head_dim == value.shape[-1] and head_dim % 8 == 0 and head_dim <= 256
    return fits and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _attend_row_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float | None
) -> torch.Tensor:
    """On the CPU in float32, whose backward pass is more than twice as fast there as bfloat16's."""
    dtype = torch.float32 if query.device.type == "cpu" else query.dtype
    with torch.autocast(query.device.type, enabled=False):
        rows = zip(*(torch.split(states.to(dtype), lengths, dim=2) for states in (query, key, value)), strict=True)
        outputs = [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in rows
        ]
        return torch.cat(outputs, dim=2).to(query.dtype).transpose(1, 2)


def _build_mask(*positional: Any, **options: Any) -> torch.Tensor | None:
    if _rows_are_given.get():
        return None
    mask: torch.Tensor | None = sdpa_mask(*positional, **options)
    return mask


AttentionInterface.register(ROW_ATTENTION, attend_in_rows)
AttentionMaskInterface.register(ROW_ATTENTION, _build_mask)
