"""The output head that gives the loss itself instead of logits.

Logits are the largest tensor of a training step: tokens x vocabulary, several times over. Here only the supervised
positions go through the head, a chunk at a time, and their gradient is computed in the same visit, so that no chunk's
logits outlive it and nothing is computed twice.

It happens inside the head's own forward, where DDP's and DeepSpeed's hooks are: under ZeRO-3 the weight is whole there
and nowhere else.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

# Logits in one chunk: on a CPU as many as stay in the cache, on a GPU enough for efficient matrix products (256 MiB).
_CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**26}


@dataclasses.dataclass
class Question:
    """What a forward pass is asked for in place of logits: S negative log-likelihoods."""

    positions: torch.Tensor
    """int64 [S]: places in the flattened input whose outputs are wanted."""
    targets: torch.Tensor
    """int64 [S]: the token that each should have predicted."""
    answer: torch.Tensor | None = None
    """Float32 [S], for a head to give without looking: shows what becomes of it on its way out of the model."""
    is_answered: bool = False
    """Whether the model has a head that answers; if not, its output is logits as ever."""


_question: contextvars.ContextVar[Question | None] = contextvars.ContextVar("question", default=None)


@contextlib.contextmanager
def asking(question: Question) -> Iterator[Question]:
    """In here the head answers with float32 [1, S, 1]."""
    token = _question.set(question)
    try:
        yield question
    finally:
        _question.reset(token)


def teach_head(model: Any) -> bool:
    """Let a transformers model's output head answer questions; not if it is adapted, trained or quantised."""
    head = model.get_output_embeddings()
    is_plain = type(head) is torch.nn.Linear and not head.weight.requires_grad
    if is_plain:
        head.forward = functools.partial(_answer, head)
    return is_plain


def unteach_head(model: Any) -> None:
    """Logits again, whatever is asked."""
    del model.get_output_embeddings().forward


def _answer(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """hidden [..., H] -> float32 [1, S, 1] if asked, else logits [..., V]."""
    question = _question.get()
    if question is None:
        return F.linear(hidden, head.weight, head.bias)
    question.is_answered = True
    nll = question.answer
    if nll is None:
        chosen = hidden.flatten(0, -2)[question.positions]
        nll = _HeadNll.apply(chosen, head.weight, head.bias, question.targets)  # type: ignore[no-untyped-call]
    return nll[None, :, None]


class _HeadNll(torch.autograd.Function):
    """Negative log-likelihood of targets: hidden [S, H], weight [V, H], targets [S] -> float32 [S].

    With p = softmax(W h), the gradient of -log p[target] by h is W^T (p - onehot(target)): known in the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        nll = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(1, _CHUNK_LOGITS.get(hidden.device.type, 2**26) // len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, len(hidden), size):
                chunk = slice(first, first + size)
                logits = F.linear(hidden[chunk].to(weight.dtype), weight, bias)
                log_p, target = F.log_softmax(logits, dim=-1, dtype=torch.float32), targets[chunk, None]
                nll[chunk] = -log_p.gather(1, target)[:, 0]
                if gradient is not None:
                    p = log_p.exp_()
                    p.scatter_add_(1, target, p.new_full((), -1.0).expand(target.shape))
                    gradient[chunk] = p.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, nll_gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else gradient * nll_gradient[:, None].to(gradient.dtype), None, None, None
