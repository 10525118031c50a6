"""The base model's tokenizer, with the chat template that the run uses."""

from typing import Any

from transformers import AutoTokenizer

from trainer_core.data.templates import set_chat_template
from trainer_core.errors import ModelError
from trainer_core.run_dir import RunSpec


def load_tokenizer(spec: RunSpec) -> Any:
    """Raises ModelError when there is none, or one that cannot tell which character a token spells."""
    model = spec.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.source, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            "tokenizer_not_loadable",
            f"The tokenizer of {model.id} cannot be loaded: {error}",
            remedy="Check the model's folder or hub name and revision, and that it was downloaded before the run.",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            "tokenizer_without_offsets",
            f"The tokenizer of {model.id} does not report which characters a token spells.",
            remedy="Add a tokenizer.json to the model (the `tokenizers` library converts most tokenizers).",
        )
    set_chat_template(tokenizer, run_template=spec.training.chat_template, model_template=model.chat_template)
    return tokenizer
