"""The loss: negative log-likelihood in nats, summed over the supervised tokens of each sequence."""

import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from trainer_core.attention import (
    RowAttentionError,
    drop_row_attention,
    has_row_attention,
    rows_given,
    unwrap,
    use_row_attention,
)
from trainer_core.data.batches import Batch, Row, build_batch
from trainer_core.errors import ConfigurationError
from trainer_core.head import Question, asking, teach_head, unteach_head
from trainer_core.model import set_evaluation_mode

log = logging.getLogger(__name__)


def compute_sequence_nll(model: Any, batch: Batch) -> torch.Tensor:
    """Float32 [B]. Sums, not means: only who knows the whole step knows what to divide by."""
    nll = _compute_token_nll(model, batch)
    return nll.new_zeros(batch.num_sequences).index_add(0, batch.target_sequences, nll)


def _compute_token_nll(model: Any, batch: Batch) -> torch.Tensor:
    """Float32 [S], of each supervised token."""
    inputs, positions = lay_out(model, batch)
    with rows_given("cu_seq_lens_q" in inputs), asking(Question(positions, batch.targets)) as question:
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    if question.is_answered:
        return logits.flatten()
    return F.cross_entropy(logits.flatten(0, 1)[positions].float(), batch.targets, reduction="none")


def lay_out(model: Any, batch: Batch) -> tuple[dict[str, Any], torch.Tensor]:
    """A batch as the model wants it; and the places in its flattened output that predict the supervised tokens.

    No attention mask on purpose: with one, transformers stops telling packed rows apart by their positions, and rows
    leak into each other without a word.
    """
    if not has_row_attention(model):
        input_ids, position_ids = batch.pad()
        return {"input_ids": input_ids, "position_ids": position_ids}, batch.padded_places[batch.predictors]
    inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "cu_seq_lens_q": batch.row_bounds,
        "cu_seq_lens_k": batch.row_bounds,
        "max_length_q": batch.longest_row,
        "max_length_k": batch.longest_row,
    }
    return inputs, batch.predictors


@torch.no_grad()
def choose_layout(model: Any, device: torch.device, *, packing: bool) -> None:
    """Give the model row attention and a head that gives the loss, where they are shown to do what they should.

    Called once, when the model has its adapter and is wrapped for training. Raises ConfigurationError when packing is
    asked for, and the model's own attention cannot keep packed rows apart either.
    """
    set_evaluation_mode(model)
    if teach_head(unwrap(model)) and not _passes_on_its_heads_output(model, device):
        unteach_head(unwrap(model))
        log.info("the model changes what its head gives: the loss is computed from whole logits")
    if use_row_attention(unwrap(model)) and _leaks(model, device):
        drop_row_attention(unwrap(model))
    if has_row_attention(model):
        return
    log.info("the model's attention is not plain causal attention: sequences are padded")
    if packing and _leaks(model, device):
        raise ConfigurationError(
            "packing_leaks",
            "The model does not keep packed rows apart: its attention ignores where a row's positions start anew.",
            remedy="Set packing to false.",
        )


def _passes_on_its_heads_output(model: Any, device: torch.device) -> bool:
    """Not so where logits are scaled or capped after the head, which a loss must not be."""
    batch = build_batch([[_draw_row(8, seed=0)]]).to(device)
    probe = torch.linspace(1, 50, len(batch.targets), device=device)
    with asking(Question(batch.predictors, batch.targets, answer=probe)):
        output = model(input_ids=batch.input_ids, use_cache=False).logits
    return torch.equal(output.flatten(), probe)


def _leaks(model: Any, device: torch.device) -> bool:
    """Whether a packed row sees the row before it.

    Changes the first of two rows and looks at the second's loss. What the same change does to one long row is the
    measure: 8-bit products are quantised together, so that "no influence" is not an exact zero.
    """
    firsts, second = [_draw_row(8, seed=seed, counts=False) for seed in (1, 2)], _draw_row(8, seed=0)
    one_row = [[_join(first, second)] for first in firsts]
    two_rows = [[first, second] for first in firsts]
    try:
        changes = [
            _compute_token_nll(model, build_batch(sequences).to(device)).view(2, -1).diff(dim=0).abs().max()
            for sequences in (one_row, two_rows)
        ]
    except RowAttentionError as error:
        log.info("%s", error)
        return True
    return bool(changes[1] > 0.1 * changes[0])


def _draw_row(length: int, *, seed: int, counts: bool = True) -> Row:
    """Random tokens, of which all but the first count, or none. Every vocabulary has 256."""
    mask = np.full(length, counts, dtype=np.uint8)
    mask[0] = False
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.int32), mask


def _join(first: Row, second: Row) -> Row:
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])
