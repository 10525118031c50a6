"""`merge`: the adapter and its base as one bfloat16 model, for servers that cannot load adapters.

What leaves the machine is the adapter unless someone asks for more: a person with this command, or the service, where
its operator lets it (worker.exporting). It needs a run whose adapter was verified.
"""

import json
import logging
from pathlib import Path

import torch
from peft import PeftModel

from trainer_core.adapters.verify import check_base, hash_weights
from trainer_core.checkpoints import write_folder
from trainer_core.errors import ConfigurationError, VerificationError
from trainer_core.model import load_base_model
from trainer_core.run_dir import RunDir
from trainer_core.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


def merge(run_dir: RunDir, out_dir: Path) -> None:
    """Write a model's folder: safetensors, configuration, tokenizer. Raises TrainerError.

    On the CPU, with memory for the whole base in bfloat16. The base is never quantised: a sum rounded to 4 or 8 bits
    would lose much of what was learned.
    """
    if out_dir.exists():
        raise ConfigurationError("output_exists", f"{out_dir} exists.", remedy="Name a folder that does not.")
    _check_verified(run_dir)
    spec = run_dir.load_spec()
    check_base(run_dir, spec)
    quantization = spec.training.quantization
    if quantization != "none":
        log.warning("trained on a base in %s: the merged model's answers will differ slightly", quantization)
    plain = spec.training.model_copy(update={"quantization": "none", "precision": "bf16"})
    base = load_base_model(spec.model, plain, torch.device("cpu"))
    merged = PeftModel.from_pretrained(base, run_dir.adapter, torch_device="cpu").merge_and_unload(safe_merge=True)
    with write_folder(out_dir) as partial:
        merged.save_pretrained(partial)
        load_tokenizer(spec).save_pretrained(partial)
    log.info("merged the adapter into %s", out_dir)


def _check_verified(run_dir: RunDir) -> None:
    remedy = f"Run `python -m trainer_core verify {run_dir.path}` first."
    try:
        report = json.loads(run_dir.verification.read_bytes())
    except OSError:
        raise VerificationError("not_verified", "The run's adapter was never verified.", remedy=remedy) from None
    if not report["ok"]:
        raise VerificationError("not_verified", "The run's adapter failed its verification.", remedy=remedy)
    if report["weights_sha256"] != hash_weights(run_dir):
        raise VerificationError(
            "not_verified", "The adapter's weights changed after their verification.", remedy=remedy
        )
