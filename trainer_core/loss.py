"""The loss: negative log-likelihood in nats, summed over the supervised tokens of each sequence."""

from typing import Any

import torch
import torch.nn.functional as F

from trainer_core.data.batches import Batch


def compute_sequence_nll(model: Any, batch: Batch) -> torch.Tensor:
    """Float32 [B]. Sums, not means: only who knows the whole step knows what to divide by.

    No attention mask is passed on purpose. With one, transformers stops telling packed rows apart by their positions,
    and rows leak into each other without a word.
    """
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[:, :-1]
    counted = batch.loss_mask[:, 1:]
    nll = F.cross_entropy(logits[counted].float(), batch.input_ids[:, 1:][counted], reduction="none")
    return nll.new_zeros(len(counted)).index_add(0, counted.nonzero()[:, 0], nll)
