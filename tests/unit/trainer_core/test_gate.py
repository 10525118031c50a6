"""The gate lets nothing pass but LoRA matrices and small text files."""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.factories import write_weights
from trainer_core.adapters.gate import check_adapter_folder
from trainer_core.errors import VerificationError

LAYER = "base_model.model.model.layers.0.mlp.up_proj"
A, B, MAGNITUDE = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight", f"{LAYER}.lora_magnitude_vector"
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "target_modules": ["up_proj"]}


def build_safetensors(shapes: dict[str, list[int]], *, dtype: str = "F32", extra: bytes = b"") -> bytes:
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(offset) + extra


GOOD_WEIGHTS = build_safetensors({A: [2, 8], B: [6, 2]})


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.safetensors").write_bytes(GOOD_WEIGHTS)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("")
    return tmp_path


def test_a_lora_adapter_passes_with_its_shapes(adapter: Path) -> None:
    assert check_adapter_folder(adapter, base_model="base") == {A: [2, 8], B: [6, 2]}


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(build_safetensors({}), id="no tensor at all, 40 bytes or less"),
        pytest.param(b"", id="an empty file"),
        pytest.param(b"\x80\x04" + bytes(100), id="a pickle by its first bytes"),
        pytest.param(GOOD_WEIGHTS[:-1], id="cut off"),
        pytest.param(GOOD_WEIGHTS + b"hidden", id="something behind the tensors"),
        pytest.param(build_safetensors({A: [2, 8]}), id="half a pair"),
        pytest.param(build_safetensors({A: [2, 8], B: [6, 3]}), id="a pair that does not multiply"),
        pytest.param(build_safetensors({A: [4, 8], B: [6, 4]}), id="another rank than the configuration's"),
        pytest.param(build_safetensors({A: [2, 8], B: [6]}), id="a vector"),
        pytest.param(build_safetensors({A: [2, 8], B: [6, 2], MAGNITUDE: [6]}), id="DoRA's vector without DoRA"),
        pytest.param(
            build_safetensors({A.replace("up", "down"): [2, 8], B.replace("up", "down"): [6, 2]}),
            id="a module that the configuration does not name",
        ),
        pytest.param(build_safetensors({A: [2, 8], B: [6, 2]}, dtype="I64"), id="integers"),
        pytest.param(build_safetensors({A: [0, 8], B: [6, 0]}), id="matrices of no values"),
        pytest.param(build_safetensors({A: [2, 8], B: [6, 2], f"{LAYER}.weight": [6, 8]}), id="a weight of the base"),
        pytest.param(
            build_safetensors({A: [2, 8], B: [6, 2], "base_model.model.lm_head.modules_to_save.weight": [6, 8]}),
            id="a saved whole layer",
        ),
    ],
)
def test_other_weights_are_refused(adapter: Path, weights: bytes) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(VerificationError, match=r"adapter_model|lora_") as caught:
        check_adapter_folder(adapter, base_model="base")
    assert caught.value.code == "artifact_invalid"


def test_dora_has_a_magnitude_for_each_output(adapter: Path) -> None:
    shapes = {A: [2, 8], B: [6, 2], MAGNITUDE: [6]}
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | {"use_dora": True}))
    (adapter / "adapter_model.safetensors").write_bytes(build_safetensors(shapes))

    assert check_adapter_folder(adapter, base_model="base") == shapes


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param({A: [2, 8], B: [6, 2]}, id="none"),
        pytest.param({A: [2, 8], B: [6, 2], MAGNITUDE: [8]}, id="of the inputs"),
        pytest.param({A: [2, 8], B: [6, 2], MAGNITUDE: [6, 8]}, id="a matrix"),
    ],
)
def test_dora_with_other_magnitudes_is_refused(adapter: Path, shapes: dict[str, list[int]]) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | {"use_dora": True}))
    (adapter / "adapter_model.safetensors").write_bytes(build_safetensors(shapes))

    with pytest.raises(VerificationError, match="lora_magnitude_vector"):
        check_adapter_folder(adapter, base_model="base")


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "rows.jsonl", "code.py", "more.safetensors"])
def test_other_files_are_refused(adapter: Path, name: str) -> None:
    (adapter / name).write_bytes(b"x")
    with pytest.raises(VerificationError, match="does not belong"):
        check_adapter_folder(adapter, base_model="base")


def change_header(weights: bytes, change: Callable[[dict[str, Any]], None], *, padding: bytes = b"") -> bytes:
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode() + padding
    return len(text).to_bytes(8, "little") + text + weights[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda h: h[B].update(data_offsets=h[A]["data_offsets"]), id="two tensors in one place"),
        pytest.param(lambda h: h[B].update(data_offsets=[80, 128]), id="room between them"),
        pytest.param(lambda h: h[B].update(data_offsets=[64, 100]), id="shorter than its shape"),
        pytest.param(lambda h: h[B].update(data_offsets=[]), id="nowhere"),
        pytest.param(lambda h: h[B].update(data_offsets=["64", "112"]), id="at words"),
        pytest.param(lambda h: h[B].pop("data_offsets"), id="without a place"),
        pytest.param(lambda h: h[B].update(note="the base, in base64"), id="a text in an entry"),
        pytest.param(lambda h: h.update(__metadata__={"base": "in base64"}), id="a text in the metadata"),
        pytest.param(lambda h: h[A].update(shape=[2, 1 << 40]), id="wider than any layer"),
    ],
)
def test_a_header_that_hides_something_is_refused(adapter: Path, change: Callable[[dict[str, Any]], None]) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(change_header(GOOD_WEIGHTS, change))
    with pytest.raises(VerificationError, match=r"adapter_model\.safetensors"):
        check_adapter_folder(adapter, base_model="base")


def test_a_header_padded_as_the_format_does_passes_and_with_more_does_not(adapter: Path) -> None:
    for padding, passes in ((7, True), (100, False)):
        weights = change_header(GOOD_WEIGHTS, lambda h: h.update(__metadata__={"format": "pt"}), padding=b" " * padding)
        (adapter / "adapter_model.safetensors").write_bytes(weights)
        with contextlib.nullcontext() if passes else pytest.raises(VerificationError, match="carries more"):
            check_adapter_folder(adapter, base_model="base")


def test_a_header_larger_than_any_adapters_is_refused_unread(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes((700_000).to_bytes(8, "little") + bytes(700_000))
    with pytest.raises(VerificationError, match="header of 700000 bytes"):
        check_adapter_folder(adapter, base_model="base")


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({A: [2, 9], B: [6, 2]}, "wide"),
        ({A: [2, 8], B: [6, 2], A.replace(".0.", ".9."): [2, 8], B.replace(".0.", ".9."): [6, 2]}, "at most 28"),
    ],
    ids=["another width", "a layer more"],
)
def test_what_the_base_has_no_place_for_is_refused(
    adapter: Path, tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]], words: str
) -> None:
    base = tmp_path_factory.mktemp("base")
    (base / "config.json").write_text("{}")
    layers = {"model.embed_tokens.weight": [16, 8], "model.layers.0.mlp.up_proj.weight": [6, 8]}
    write_weights(base / "model.safetensors", layers)
    check_adapter_folder(adapter, base_model="base", base=base)

    (adapter / "adapter_model.safetensors").write_bytes(build_safetensors(shapes))

    with pytest.raises(VerificationError, match=words):
        check_adapter_folder(adapter, base_model="base", base=base)


def test_a_link_out_of_the_folder_is_refused(adapter: Path) -> None:
    (adapter / "notes.md").symlink_to("/etc/passwd")
    with pytest.raises(VerificationError, match="is a link"):
        check_adapter_folder(adapter, base_model="base")


def test_a_huge_file_under_an_innocent_name_is_refused(adapter: Path) -> None:
    with (adapter / "tokenizer.json").open("wb") as file:
        file.truncate(65_000_000)
    with pytest.raises(VerificationError, match="larger than"):
        check_adapter_folder(adapter, base_model="base")


@pytest.mark.parametrize(
    "change",
    [
        {"base_model_name_or_path": "another"},
        {"peft_type": "IA3"},
        {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [5]},
        {"bias": "all"},
        {"lora_bias": True},
        {"rank_pattern": {"up_proj": 4}},
        {"alpha_pattern": {"up_proj": 4}},
        {"r": None},
        {"r": "2"},
        {"target_modules": None},
        {"target_modules": ".*"},
    ],
)
def test_another_kind_of_adapter_is_refused(adapter: Path, change: dict[str, object]) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(VerificationError, match="adapter_config"):
        check_adapter_folder(adapter, base_model="base")


def test_a_missing_configuration_is_refused(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(VerificationError, match="adapter_config"):
        check_adapter_folder(adapter, base_model="base")
