"""What is known of a model before it loads, and what is refused for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.factories import create_model_folder, write_weights
from tests.unit.trainer_core.shapes import LLAMA_2_7B, LLAMA_31_8B, LLAMA_31_70B, build_llama_facts, list_llama_shapes
from trainer_core.config import LoraConfig, TrainingConfig
from trainer_core.errors import ConfigurationError, ModelError
from trainer_core.planning.model_facts import build_model_facts, check_model_facts, load_model_facts


@pytest.mark.parametrize(
    ("config", "num_weights", "num_adapter_weights"),
    [
        (LLAMA_2_7B, 6_738_415_616, 79_953_920),
        (LLAMA_31_8B, 8_030_261_248, 83_886_080),
        (LLAMA_31_70B, 70_553_706_496, 414_187_520),
    ],
    ids=["7B", "8B", "70B"],
)
def test_weights_are_those_that_the_publishers_and_peft_count(
    config: dict[str, Any], num_weights: int, num_adapter_weights: int
) -> None:
    facts = build_llama_facts(config)

    assert facts.num_weights == num_weights
    assert facts.count_adapter_weights(LoraConfig(r=32)) == num_adapter_weights


def test_named_targets_and_dora_are_counted() -> None:
    facts = build_llama_facts(LLAMA_31_8B)
    attention = ["q_proj", "k_proj", "v_proj", "self_attn.o_proj"]

    plain = facts.count_adapter_weights(LoraConfig(r=32, target_modules=attention))
    dora = facts.count_adapter_weights(LoraConfig(r=32, target_modules=attention, variant="dora"))

    assert plain == 27_262_976
    assert dora - plain == 32 * (4096 + 1024 + 1024 + 4096)


def test_widths_come_from_the_configuration_also_where_it_is_nested() -> None:
    shapes = list_llama_shapes(LLAMA_31_8B)

    facts = build_model_facts({"text_config": LLAMA_31_8B, "hidden_size": 1}, shapes)

    assert (facts.hidden_size, facts.intermediate_size, facts.query_width, facts.key_value_width) == (
        4096,
        14336,
        4096,
        1024,
    )


def test_what_the_configuration_leaves_out_is_told_from_the_weights() -> None:
    facts = build_model_facts({}, list_llama_shapes(LLAMA_31_8B))

    assert (facts.num_layers, facts.hidden_size, facts.intermediate_size) == (32, 4096, 14336)
    assert facts.max_positions is None


def test_a_tied_head_counts_once() -> None:
    shapes = list_llama_shapes(LLAMA_31_8B)
    del shapes["lm_head.weight"]

    assert build_model_facts(LLAMA_31_8B, shapes).is_tied
    assert not build_llama_facts(LLAMA_31_8B).is_tied


def test_experts_are_no_linear_layers() -> None:
    shapes = list_llama_shapes(LLAMA_31_8B) | {"model.layers.0.mlp.experts.3.w1.weight": (64, 4096)}
    config = {**LLAMA_31_8B, "num_experts_per_tok": 2, "moe_intermediate_size": 512}

    facts = build_model_facts(config, shapes)

    assert not any("experts" in layer.name for layer in facts.linear_layers)
    assert facts.intermediate_size == 1024


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        (None, 4096),
        ({"rope_type": "default", "rope_theta": 10000.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "llama3", "factor": 1.0, "original_max_position_embeddings": 1024}, 4096),
    ],
)
def test_rope_scaling_lengthens_what_fits(scaling: dict[str, Any] | None, positions: int) -> None:
    shapes = list_llama_shapes(LLAMA_2_7B)

    for key in ("rope_scaling", "rope_parameters"):
        assert build_model_facts({**LLAMA_2_7B, key: scaling}, shapes).max_positions == positions


def test_a_sequence_longer_than_the_models_positions_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_model_facts(TrainingConfig(max_seq_len=8192), build_llama_facts(LLAMA_2_7B))

    assert (caught.value.code, caught.value.details["field"]) == ("max_seq_len_too_long", "max_seq_len")
    assert "4096" in caught.value.remedy


@pytest.mark.parametrize("name", ["query", "proj", "lm_head", "embed_tokens", "norm"])
def test_targets_that_match_nothing_are_refused_with_what_there_is(name: str) -> None:
    training = TrainingConfig(lora=LoraConfig(target_modules=["q_proj", name]))

    with pytest.raises(ConfigurationError) as caught:
        check_model_facts(training, build_llama_facts(LLAMA_2_7B))

    assert caught.value.code == "target_modules_match_nothing"
    assert caught.value.details["available"] == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    ]


@pytest.mark.parametrize("config", [{"quantization_config": {"quant_method": "fp8"}}])
def test_a_quantised_checkpoint_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        build_model_facts(config, list_llama_shapes(LLAMA_2_7B))

    assert caught.value.code == "model_already_quantized"


def test_weights_that_are_no_language_model_are_refused() -> None:
    with pytest.raises(ModelError) as caught:
        build_model_facts({}, {"conv.weight": (3, 3, 3, 3)})

    assert caught.value.code == "model_not_understood"


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": {"vocab": {"a": 0, "b": 16}}},
        {"model": {"vocab": [["a", -1.0]] * 17}},
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 16, "content": "<|im_end|>"}]},
    ],
    ids=["BPE", "Unigram", "added token"],
)
def test_a_tokenizer_with_tokens_that_the_model_does_not_embed_is_refused(
    tmp_path: Path, tokenizer: dict[str, Any]
) -> None:
    folder = create_model_folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(ModelError) as caught:
        check_model_facts(TrainingConfig(), load_model_facts(folder))

    assert caught.value.code == "vocabulary_too_small"
    assert "17 tokens" in caught.value.message


def test_all_shards_of_the_index_are_read_and_nothing_beside_them(tmp_path: Path) -> None:
    folder = create_model_folder(tmp_path / "model")
    whole = load_model_facts(folder)
    (folder / "model.safetensors").unlink()
    embedding, layer = {"model.embed_tokens.weight": [16, 8]}, {"model.layers.0.self_attn.q_proj.weight": [8, 8]}
    write_weights(folder / "model-1.safetensors", embedding)
    write_weights(folder / "model-2.safetensors", layer)
    write_weights(folder / "consolidated.safetensors", embedding | layer)
    index = {name: f"model-{number}.safetensors" for number, name in enumerate((*embedding, *layer), 1)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    facts = load_model_facts(folder)

    assert facts.num_weights == 16 * 8 + 8 * 8 != whole.num_weights
    assert facts.bytes_on_disk < whole.bytes_on_disk


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    folder = create_model_folder(tmp_path / "model")
    assert load_model_facts(folder).max_positions == 4096

    (folder / "config.json").write_text('{"max_position_embeddings": 512}')

    assert load_model_facts(folder).max_positions == 512


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("model.safetensors", (8).to_bytes(8, "little") + b"{broken}"),
        ("model.safetensors", (7).to_bytes(8, "little") + b'{"a":1}'),
        ("config.json", b"[]"),
        ("config.json", b"\xff"),
        ("model.safetensors.index.json", b"{}"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}'),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    folder = create_model_folder(tmp_path / "model")
    (folder / name).write_bytes(content)

    with pytest.raises(ModelError) as caught:
        load_model_facts(folder)

    assert caught.value.code == "model_files_damaged"
    assert caught.value.remedy


def test_weights_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    folder = create_model_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    with pytest.raises(ModelError, match="not as long as its tensors"):
        load_model_facts(folder)
