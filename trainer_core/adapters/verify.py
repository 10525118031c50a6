"""`verify`: proof, in a fresh process, that the saved adapter is one and does something.

The first check that fails ends the verification. All is
written to verification.json:

    {"ok": bool, "checks": [{"name", "ok", "detail"}], "heldout": {...} | null, "seconds": float}

`heldout` is a report and no condition: a run may well make held-out rows worse, and that is for people to judge.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from trainer_core.adapters.gate import check_adapter_folder
from trainer_core.adapters.save import WEIGHTS_FILE
from trainer_core.data.batches import PreparedRows, Sequences
from trainer_core.errors import VerificationError
from trainer_core.loss import compute_sequence_nll
from trainer_core.model import load_base_model, set_evaluation_mode
from trainer_core.reporting import PhaseEvent, Reporter
from trainer_core.run_dir import RunDir, RunSpec
from trainer_core.tokenizer import load_tokenizer

_PROMPTS = ("What are the symptoms of diabetes?", "How is high blood pressure treated?", "Hello.")
_Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution
_MAX_HELDOUT_ROWS = 1000  # spread evenly over the validation rows; more would tell little more and take long
_ROWS_PER_PASS = 8


def verify(run_dir: RunDir, reporter: Reporter) -> None:
    """Write verification.json. Raises VerificationError when a check fails."""
    started = time.perf_counter()
    report: dict[str, Any] = {"ok": False, "checks": [], "heldout": None}
    try:
        _run_checks(run_dir, report)
        report["ok"] = True
    finally:
        report["seconds"] = round(time.perf_counter() - started, 3)
        run_dir.verification.write_text(json.dumps(report, indent=1), encoding="utf-8")
    reporter.report(PhaseEvent(phase="finished", message="the adapter is verified", details=report))


def _run_checks(run_dir: RunDir, report: dict[str, Any]) -> None:
    spec = run_dir.load_spec()
    with _check(report, "only_lora_tensors") as found:
        shapes = check_adapter_folder(run_dir.adapter, base_model=spec.model.id)
        found["tensors"] = len(shapes)
    with _check(report, "finite_and_not_zero"):
        _check_values(load_file(run_dir.adapter / WEIGHTS_FILE))
    with _check(report, "loads_on_the_base"):
        model = _load(run_dir, spec)
        _check_loaded(model, shapes)
    with _check(report, "changes_the_logits") as found:
        found["max_abs_difference"] = _compare_logits(model, load_tokenizer(spec))
    report["heldout"] = _compare_heldout_loss(PreparedRows(run_dir.prepared), model)


@contextlib.contextmanager
def _check(report: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Adds the check to the report with what its body found, or with why it failed."""
    found: dict[str, Any] = {}
    try:
        yield found
    except Exception as error:  # whatever a broken file makes a library raise, the file is broken
        report["checks"].append({"name": name, "ok": False, "detail": str(error)})
        raise VerificationError("artifact_invalid", f"The adapter fails the check {name}: {error}") from error
    report["checks"].append({"name": name, "ok": True, "detail": "", **found})


def _check_values(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise VerificationError("artifact_invalid", f"{name} has values that are not finite.")
    if not any(tensor.any() for name, tensor in tensors.items() if ".lora_B." in name):
        raise VerificationError(
            "artifact_invalid", "Every lora_B is zero, as before the first step: nothing is learned."
        )


def _load(run_dir: RunDir, spec: RunSpec) -> PeftModel:
    device = torch.device("cuda" if spec.gpus else "cpu")
    base = load_base_model(spec.model, spec.training, device)
    model = PeftModel.from_pretrained(base, run_dir.adapter, torch_device=str(device))
    set_evaluation_mode(model)
    return model


def _check_loaded(model: PeftModel, shapes: dict[str, list[int]]) -> None:
    """PEFT only warns of tensors that the base has no place for, and of places that no tensor fills."""
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    if missing := sorted(shapes.keys() ^ loaded.keys()):
        message = f"{len(missing)} tensors do not fit the base model, the first is {missing[0]}."
        raise VerificationError("artifact_invalid", message)


@torch.no_grad()
def _compare_logits(model: PeftModel, tokenizer: Any) -> float:
    """The largest difference between the logits with the adapter and without it."""
    difference = 0.0
    for prompt in _PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt").to(model.device)
        adapted = model(**tokens).logits.float()
        with model.disable_adapter():
            difference = max(difference, float((adapted - model(**tokens).logits.float()).abs().max()))
    if difference == 0:
        raise VerificationError("artifact_invalid", "The logits on fixed prompts are the base model's.")
    return difference


@torch.no_grad()
def _compare_heldout_loss(rows: PreparedRows, model: PeftModel) -> dict[str, Any] | None:
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
    mean, deviation = float(difference.mean()), float(difference.std()) if len(difference) > 1 else math.inf
    margin = _Z_95 * deviation / math.sqrt(len(difference))
    return {
        "rows": len(difference),
        "tokens": int(num_tokens.sum()),
        "base_loss": float(base_nll.sum() / num_tokens.sum()),
        "adapter_loss": float(adapter_nll.sum() / num_tokens.sum()),
        "mean_row_difference": mean,
        "ci95": [mean - margin, mean + margin] if math.isfinite(margin) else None,
    }


def _compute_row_nll(model: PeftModel, sequences: Sequences) -> torch.Tensor:
    batches = (
        list(range(first, min(first + _ROWS_PER_PASS, len(sequences))))
        for first in range(0, len(sequences), _ROWS_PER_PASS)
    )
    nll = [compute_sequence_nll(model, sequences.collate(batch).to(model.device)).cpu() for batch in batches]
    return torch.cat(nll).double()
