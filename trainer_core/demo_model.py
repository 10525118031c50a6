"""`demo-model`: a small real Llama folder, built on the spot, for demonstrations and tests.

The weights are random: nothing is downloaded, and the model knows nothing. Same seed and data, same bytes.
"""

import logging
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer_core.data.files import iter_rows
from trainer_core.errors import DataError

log = logging.getLogger(__name__)

_VOCABULARY_SIZE = 2048
_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_README = """# A demonstration model

A Llama of {millions:.1f} million **random weights** (seed {seed}). It is for demonstrations, knows nothing and says
nothing of use. Its tokenizer was trained on `{data}`.
"""


def build_demo_model(folder: Path, *, data: Path, seed: int = 0, hidden_size: int = 192, num_layers: int = 4) -> None:
    """Write config, safetensors, tokenizer and chat template to a folder."""
    tokenizer = _build_tokenizer(data)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_build_config(tokenizer, hidden_size, num_layers))
    # Through random layers an adapter can learn only from what it can tell apart: embeddings of unit scale carry the
    # token's identity past them, and a head of this scale lets it be certain of a token.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    num_weights = model.num_parameters()
    (folder / "README.md").write_text(_README.format(millions=num_weights / 1e6, seed=seed, data=data.name), "utf-8")
    log.info("built a Llama of %.1f million random weights in %s", num_weights / 1e6, folder)


def _build_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE: it can spell any text, whatever it was trained on."""
    texts = [message["content"] for _, row in iter_rows(data) if isinstance(row, list) for message in row]
    if not texts:
        raise DataError("no_rows", f"{data} holds no rows that can be used.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def _build_config(tokenizer: PreTrainedTokenizerFast, hidden_size: int, num_layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=_VOCABULARY_SIZE,
        hidden_size=hidden_size,
        intermediate_size=8 * hidden_size // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        initializer_range=0.06,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
