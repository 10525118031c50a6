"""ModelFacts: what is known of a base model from config.json and the headers of its weights. Torch-free.

No weight is read, so that the API can plan a run, and refuse what cannot work, before anything takes a GPU.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer_core.config import LoraConfig, TrainingConfig
from trainer_core.errors import ConfigurationError, ModelError
from trainer_core.model_files import Shapes, list_weight_files, load_json_object, read_tensor_shapes

_EMBEDDING = re.compile(r"embed|\bwte\b|\bwpe\b")
_TOKEN_EMBEDDING = re.compile(r"\b(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$")
_HEAD = re.compile(r"\b(lm_head|embed_out|output_layer)\.weight$|^(model\.)?output\.weight$")
# transformers 5 joins a layer's experts into one tensor, which is no linear layer to PEFT or bitsandbytes.
_EXPERT = re.compile(r"\.experts\.")
_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class LinearLayer:
    """A linear layer that can be adapted and quantised."""

    name: str
    num_inputs: int
    num_outputs: int


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Shape of a model. Sizes are in elements, `bytes_on_disk` is in bytes."""

    num_weights: int
    """All of them, a tied head counted once."""
    linear_layers: tuple[LinearLayer, ...]
    """Without the output head, which is never adapted or quantised."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Width of the MLP that one token passes; of several experts, their sum."""
    query_width: int
    """All attention heads together."""
    key_value_width: int
    """All key heads together; the value heads have as much."""
    vocabulary_size: int
    """Rows of the embedding."""
    largest_tensor: int
    is_tied: bool
    """Embedding and output head share their weights."""
    max_positions: int | None
    """Longest sequence that the model was made for, with its RoPE scaling; None where nothing says it."""
    tokenizer_size: int | None
    """Highest token id of tokenizer.json plus one; None without that file."""
    bytes_on_disk: int

    @functools.cached_property
    def num_linear_weights(self) -> int:
        return sum(layer.num_inputs * layer.num_outputs for layer in self.linear_layers)

    @functools.cached_property
    def largest_linear_layer(self) -> int:
        """In weights."""
        return max(layer.num_inputs * layer.num_outputs for layer in self.linear_layers)

    def list_targets(self, target_modules: str | list[str]) -> list[LinearLayer]:
        """The layers that get an adapter, by PEFT's rule: a target names a whole path, or its end."""
        if target_modules == "all-linear":
            return list(self.linear_layers)
        ends = tuple(f".{name}" for name in target_modules)
        return [layer for layer in self.linear_layers if f".{layer.name}".endswith(ends)]

    def count_adapter_weights(self, lora: LoraConfig) -> int:
        """A is [r, in], B is [out, r]; DoRA has a magnitude for each output."""
        targets = self.list_targets(lora.target_modules)
        num_magnitudes = sum(layer.num_outputs for layer in targets) if lora.variant == "dora" else 0
        return num_magnitudes + sum(lora.r * (layer.num_inputs + layer.num_outputs) for layer in targets)


def load_model_facts(folder: Path) -> ModelFacts:
    """Kept until a file of the folder changes. Raises ModelError."""
    files = [folder / "config.json", folder / "tokenizer.json", *list_weight_files(folder)]
    stats = [path.stat() for path in files if path.is_file()]
    return _load_model_facts(folder, tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))


@functools.lru_cache(maxsize=64)
def _load_model_facts(folder: Path, _fingerprint: tuple[tuple[int, int], ...]) -> ModelFacts:
    shapes: Shapes = {}
    files = list_weight_files(folder)
    for path in files:
        shapes |= read_tensor_shapes(path)
    tokenizer = folder / "tokenizer.json"
    return build_model_facts(
        load_json_object(folder / "config.json"),
        shapes,
        tokenizer_size=_measure_tokenizer(load_json_object(tokenizer)) if tokenizer.is_file() else None,
        bytes_on_disk=sum(path.stat().st_size for path in files),
    )


def build_model_facts(
    config: dict[str, Any], shapes: Shapes, *, tokenizer_size: int | None = None, bytes_on_disk: int = 0
) -> ModelFacts:
    """From a config.json and the tensors' shapes; what the first leaves out is told from the second.

    Raises ModelError.
    """
    if config.get("quantization_config"):
        raise ModelError(
            "model_already_quantized",
            "The model's weights are quantised already.",
            remedy="Use the model in its original precision; `quantization` quantises it while it loads.",
        )
    if isinstance(config.get("text_config"), dict):  # of a model that reads more than text
        config = {**config, **config["text_config"]}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    layers = tuple(_list_linear_layers(shapes))
    embeddings = [shape for name, shape in shapes.items() if len(shape) == 2 and _TOKEN_EMBEDDING.search(name)]
    if not embeddings or not layers:
        raise ModelError(
            "model_not_understood",
            "The model's weights have no token embedding, or no linear layer that an adapter could change.",
            remedy="Name the folder of a causal language model that transformers knows.",
        )
    num_embeddings, hidden = embeddings[0]
    hidden = _find(config, "hidden_size", "n_embd", "d_model") or hidden
    return ModelFacts(
        num_weights=sum(sizes.values()),
        linear_layers=layers,
        num_layers=_find(config, "num_hidden_layers", "n_layer", "num_layers") or _count_layers(shapes),
        hidden_size=hidden,
        intermediate_size=_measure_mlp(config, layers),
        query_width=_measure_heads(config, hidden, "num_attention_heads", "n_head"),
        key_value_width=_measure_heads(config, hidden, "num_key_value_heads", "num_attention_heads", "n_head"),
        vocabulary_size=num_embeddings,
        largest_tensor=max(sizes.values()),
        is_tied=not any(_HEAD.search(name) for name in shapes),
        max_positions=_find_max_positions(config),
        tokenizer_size=tokenizer_size,
        bytes_on_disk=bytes_on_disk,
    )


def check_model_facts(training: TrainingConfig, facts: ModelFacts) -> None:
    """Raises ModelError or ConfigurationError where the tokenizer or the configuration does not suit the model."""
    check_tokenizer(facts)
    _check_target_modules(training.lora.target_modules, facts)
    if facts.max_positions is not None and training.max_seq_len > facts.max_positions:
        raise ConfigurationError(
            "max_seq_len_too_long",
            f"max_seq_len is {training.max_seq_len}, and the model was made for {facts.max_positions} positions.",
            remedy=f"Set max_seq_len to at most {facts.max_positions}, or give the model's config.json a RoPE scaling.",
            field="max_seq_len",
        )


def check_tokenizer(facts: ModelFacts) -> None:
    """Raises ModelError."""
    if facts.tokenizer_size is not None and facts.tokenizer_size > facts.vocabulary_size:
        raise ModelError(
            "vocabulary_too_small",
            f"The tokenizer has {facts.tokenizer_size} tokens, the model embeds only {facts.vocabulary_size}.",
            remedy="Use the tokenizer that belongs to the model, or resize the model's embeddings beforehand.",
        )


def _check_target_modules(target_modules: str | list[str], facts: ModelFacts) -> None:
    if target_modules == "all-linear":
        return
    unmatched = [name for name in target_modules if not facts.list_targets([name])]
    if unmatched:
        known = sorted({layer.name.rpartition(".")[2] for layer in facts.linear_layers})
        raise ConfigurationError(
            "target_modules_match_nothing",
            f"lora.target_modules {unmatched} match no linear layer of the model that can be adapted; it has {known}.",
            remedy="Name layers that the model has, or use 'all-linear'.",
            field="lora.target_modules",
            available=known,
        )


def _list_linear_layers(shapes: Shapes) -> Iterable[LinearLayer]:
    for name, shape in shapes.items():
        is_other = _EMBEDDING.search(name) or _HEAD.search(name) or _EXPERT.search(name)
        if len(shape) == 2 and name.endswith(".weight") and not is_other:
            yield LinearLayer(name.removesuffix(".weight"), num_inputs=shape[1], num_outputs=shape[0])


def _measure_mlp(config: dict[str, Any], layers: tuple[LinearLayer, ...]) -> int:
    experts = _find(config, "num_experts_per_tok")
    if experts is not None:
        width = _find(config, "moe_intermediate_size", "intermediate_size") or 0
        return experts * width + (_find(config, "shared_expert_intermediate_size") or 0)
    widest = max(max(layer.num_inputs, layer.num_outputs) for layer in layers)
    return _find(config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or widest


def _measure_heads(config: dict[str, Any], hidden: int, *names: str) -> int:
    """Width of all heads together; that of the hidden state where the configuration does not say it."""
    num_heads, num_query_heads = _find(config, *names), _find(config, "num_attention_heads", "n_head")
    if num_heads is None or num_query_heads is None:
        return hidden
    return num_heads * (_find(config, "head_dim") or hidden // num_query_heads)


def _find_max_positions(config: dict[str, Any]) -> int | None:
    positions = _find(config, "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if positions is None or not isinstance(scaling, dict) or not isinstance(scaling.get("factor"), int | float):
        return positions
    return max(positions, int(scaling["factor"] * (_find(scaling, "original_max_position_embeddings") or positions)))


def _measure_tokenizer(tokenizer: dict[str, Any]) -> int:
    """BPE and WordPiece list tokens with their ids, Unigram in their order."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab", ()) if isinstance(model, dict) else ()
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = [token.get("id") for token in tokenizer.get("added_tokens", ()) if isinstance(token, dict)]
    return max((number for number in (*ids, *added) if isinstance(number, int)), default=-1) + 1


def _count_layers(shapes: Shapes) -> int:
    return len({match[1] for name in shapes if (match := _LAYER.search(name))}) or 1


def _find(config: dict[str, Any], *names: str) -> int | None:
    """The first of the names that has a positive whole number."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)
