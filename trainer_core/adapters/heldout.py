"""The loss on rows that were held out, with the adapter and without it."""

import math
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from trainer_core.data.batches import PreparedRows, Sequences
from trainer_core.loss import compute_sequence_nll

_MAX_HELDOUT_ROWS = 1000  # spread evenly over the validation rows; more would tell little more and take long
_MIN_ROWS_FOR_INTERVAL = 5  # fewer tell nothing about how much rows differ
_TOKENS_PER_PASS = 4096  # the logits of a pass must fit beside the model, for vocabularies of 250,000 tokens too


@torch.no_grad()
def compare_heldout_loss(rows: PreparedRows, model: PeftModel) -> dict[str, Any] | None:
    """Loss per supervised token with and without the adapter, and the mean difference between them over rows."""
    if len(rows.validation) == 0:
        return None
    held_out = rows.validation[np.linspace(0, len(rows.validation) - 1, num=_MAX_HELDOUT_ROWS, dtype=int)]
    held_out = np.unique(held_out)
    held_out = held_out[np.argsort(rows.lengths[held_out])]  # rows of like length side by side need little padding
    sequences = Sequences(rows, held_out, max_seq_len=int(rows.lengths.max()), packing=False)
    adapter_nll = _compute_row_nll(model, sequences)
    with model.disable_adapter():
        base_nll = _compute_row_nll(model, sequences)
    num_tokens = torch.from_numpy(sequences.supervised)
    difference = (adapter_nll - base_nll) / num_tokens
    return {
        "rows": len(difference),
        "tokens": int(num_tokens.sum()),
        "base_loss": float(base_nll.sum() / num_tokens.sum()),
        "adapter_loss": float(adapter_nll.sum() / num_tokens.sum()),
        "mean_row_difference": float(difference.mean()),
        "ci95": compute_interval(difference),
    }


def _compute_row_nll(model: PeftModel, sequences: Sequences) -> torch.Tensor:
    """Summed nll of each row, float64 [rows]."""
    batches = _cut_into_passes(sequences.lengths.tolist())
    nll = [compute_sequence_nll(model, sequences.collate(batch).to(model.device)).cpu() for batch in batches]
    return torch.cat(nll).double()


def _cut_into_passes(lengths: list[int]) -> list[list[int]]:
    """Rows from the shortest to the longest, as many together as fit with their padding."""
    passes: list[list[int]] = [[]]
    for row, length in enumerate(lengths):
        if passes[-1] and length * (len(passes[-1]) + 1) > _TOKENS_PER_PASS:
            passes.append([])
        passes[-1].append(row)
    return passes


def compute_interval(differences: torch.Tensor) -> list[float] | None:
    """Student's 95 % interval of the mean; None for too few rows."""
    count = len(differences)
    if count < _MIN_ROWS_FOR_INTERVAL:
        return None
    mean = float(differences.mean())
    margin = _compute_t_95(count - 1) * float(differences.std()) / math.sqrt(count)
    return [mean - margin, mean + margin]


def _compute_t_95(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t (Abramowitz & Stegun 26.7.5), to 0.01 from 4 degrees of freedom on."""
    z = 1.959964
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
