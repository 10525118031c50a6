"""Whether transformers knows a model's architecture and can read its tokenizer: all of loading but the weights."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer_core.errors import ModelError
from trainer_core.run_dir import ModelSource, RunSpec
from trainer_core.tokenizer import load_tokenizer


def check_loading(model: ModelSource) -> None:
    """Code of the model's own runs only where it is trusted. Raises ModelError, with why a job would fail."""
    load_tokenizer(RunSpec(job_id="check", model=model, train_path=""))
    trust = model.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(model.source, trust_remote_code=trust)
        with torch.device("meta"):  # Shapes without memory.
            AutoModelForCausalLM.from_config(config, trust_remote_code=trust)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(
            "model_not_loadable",
            f"transformers cannot build the model: {error}",
            remedy="Use a causal language model that the installed transformers knows; code that comes with a model "
            "runs only where the operator registered it with --trust-remote-code.",
        ) from error
