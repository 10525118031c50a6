"""A base's fingerprint: the same for the same model however its files are cut, another for another model."""

import json
from pathlib import Path

import pytest

from trainer_core.adapters.fingerprint import BYTES_PER_TENSOR, compute_base_fingerprint


def write_model(folder: Path, *files: dict[str, bytes], config: str = "{}") -> Path:
    """A model whose tensors are bytes, in one safetensors file after another."""
    folder.mkdir()
    (folder / "config.json").write_text(config)
    for number, tensors in enumerate(files):
        header, offset = {}, 0
        for name, data in tensors.items():
            header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, offset + len(data)]}
            offset += len(data)
        text = json.dumps(header | {"__metadata__": {"number": str(number)}}).encode()
        content = len(text).to_bytes(8, "little") + text + b"".join(tensors.values())
        (folder / f"model-{number}.safetensors").write_bytes(content)
    return folder


A, B = b"a" * 10_000, b"b" * 10


def test_the_fingerprint_does_not_depend_on_how_the_weights_are_cut_into_files(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole", {"a": A, "b": B})
    cut = write_model(tmp_path / "cut", {"b": B}, {"a": A})

    assert compute_base_fingerprint(whole) == compute_base_fingerprint(cut)


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ({"a": A, "b": b"c" * 10}, "{}"),
        ({"a": b"c" + A[1:], "b": B}, "{}"),
        ({"a": A, "c": B}, "{}"),
        ({"a": A, "b": B + b"b"}, "{}"),
        ({"a": A}, "{}"),
        ({"a": A, "b": B}, '{"rope_theta": 2}'),
    ],
    ids=["values", "a long tensor's first value", "a name", "a shape", "a tensor less", "the configuration"],
)
def test_another_model_has_another_fingerprint(tmp_path: Path, tensors: dict[str, bytes], config: str) -> None:
    one = write_model(tmp_path / "one", {"a": A, "b": B})
    other = write_model(tmp_path / "other", tensors, config=config)

    assert compute_base_fingerprint(one) != compute_base_fingerprint(other)


def test_only_the_beginning_of_a_tensor_is_read(tmp_path: Path) -> None:
    """As documented: it costs the same for a model of any size, and proves no more."""
    one = write_model(tmp_path / "one", {"a": A})
    other = write_model(tmp_path / "other", {"a": A[:BYTES_PER_TENSOR] + b"c" * (len(A) - BYTES_PER_TENSOR)})

    assert compute_base_fingerprint(one) == compute_base_fingerprint(other)


def test_a_second_copy_of_the_weights_beside_the_indexed_files_does_not_count(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain", {"a": A})
    doubled = write_model(tmp_path / "doubled", {"a": A}, {"consolidated": A})
    index = {"weight_map": {"a": "model-0.safetensors"}}
    (doubled / "model.safetensors.index.json").write_text(json.dumps(index))

    assert compute_base_fingerprint(plain) == compute_base_fingerprint(doubled)


def test_a_folder_without_weights_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        compute_base_fingerprint(write_model(tmp_path / "empty"))
