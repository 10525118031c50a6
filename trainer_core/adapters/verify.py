"""`verify`: proof, in a fresh process, that the saved adapter is one and does something.

The first check that fails ends the verification. All is written to verification.json:

    {"ok": bool, "checks": [{"name", "ok", "detail"}], "weights_sha256": str, "serving": {...}, "heldout": {...} | null,
     "seconds": float}

`serving` and `heldout` are reports and no conditions: a run may well make held-out rows worse, and that is for people
to judge.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from trainer_core.adapters.gate import check_adapter_folder
from trainer_core.adapters.heldout import compare_heldout_loss
from trainer_core.adapters.manifest import BASE_FILE, CONFIG_FILE, WEIGHTS_FILE, hash_file
from trainer_core.adapters.save import compute_fingerprint
from trainer_core.adapters.serving import describe_serving
from trainer_core.data.batches import PreparedRows
from trainer_core.errors import VerificationError
from trainer_core.model import load_base_model, set_evaluation_mode
from trainer_core.reporting import PhaseEvent, Reporter
from trainer_core.run_dir import RunDir, RunSpec
from trainer_core.tokenizer import load_tokenizer

_PROMPTS = ("What are the symptoms of diabetes?", "How is high blood pressure treated?", "Hello.")


def verify(run_dir: RunDir, reporter: Reporter) -> None:
    """Write verification.json. Raises VerificationError when a check fails."""
    started = time.perf_counter()
    report: dict[str, Any] = {"ok": False, "checks": [], "weights_sha256": None, "serving": None, "heldout": None}
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
    report["weights_sha256"] = hash_weights(run_dir)
    report["serving"] = describe_serving(json.loads((run_dir.adapter / CONFIG_FILE).read_bytes()))
    with _check(report, "finite_and_not_zero"):
        _check_values(load_file(run_dir.adapter / WEIGHTS_FILE))
    with _check(report, "trained_on_this_base") as found:
        found["fingerprint"] = check_base(run_dir, spec)
    with _check(report, "loads_on_the_base"):
        model = _load(run_dir, spec)
        _check_loaded(model, shapes)
    with _check(report, "changes_the_logits") as found:
        found["max_abs_difference"] = _compare_logits(model, load_tokenizer(spec))
    report["heldout"] = compare_heldout_loss(PreparedRows(run_dir.prepared), model)


def hash_weights(run_dir: RunDir) -> str:
    """The sha256 of the adapter's weights, by which a later step knows them for those that were verified."""
    return hash_file(run_dir.adapter / WEIGHTS_FILE)


def check_base(run_dir: RunDir, spec: RunSpec) -> str:
    """The fingerprint of the run's base. Raises VerificationError when the adapter was trained on another."""
    trained_on: str = json.loads((run_dir.adapter / BASE_FILE).read_bytes())["fingerprint"]
    at_hand = compute_fingerprint(spec.model.source, spec.model.revision)
    if trained_on != at_hand:
        message = f"It was trained on a base with the fingerprint {trained_on}; {spec.model.id} has {at_hand}."
        raise VerificationError("artifact_invalid", message)
    return at_hand


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
        if not adapted.isfinite().all():
            raise VerificationError("artifact_invalid", "The logits with the adapter are not finite.")
        with model.disable_adapter():
            difference = max(difference, float((adapted - model(**tokens).logits.float()).abs().max()))
    if difference == 0:
        raise VerificationError("artifact_invalid", "The logits on fixed prompts are the base model's.")
    return difference
