"""The gate: what may be in a LoRA adapter's folder, told from names, sizes and the weights file's header. Torch-free.

Nothing here loads a tensor: an adapter that carries base weights or a pickle is refused before anything can run it.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from trainer_core.errors import VerificationError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_OTHER_FILE_BYTES = 64_000_000  # the largest tokenizers are about half of it

_WEIGHTS_FILE = "adapter_model.safetensors"
_LORA_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.(?P<kind>lora_[AB]\.weight|lora_magnitude_vector)")
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_ALLOWED_SUFFIXES = {".json", ".jinja", ".md", ".model", ".txt", ".sig"}
_REFUSED_SETTINGS = (
    "auto_mapping",  # a module to import
    "modules_to_save",  # whole layers of the base
    "trainable_token_indices",  # rows of its embeddings
    "lora_bias",
    "layer_replication",  # the rest change where matrices stand, or their rank and scale, layer by layer
    "target_parameters",
    "rank_pattern",
    "alpha_pattern",
)


def check_adapter_folder(folder: Path, *, base_model: str) -> dict[str, list[int]]:
    """The shapes of the LoRA tensors by name. Raises VerificationError for anything but a LoRA adapter of the base."""
    config = _load_config(folder / "adapter_config.json", base_model)
    for file in sorted(folder.rglob("*")):
        if file.is_file() or file.is_symlink():
            _check_file(file, str(file.relative_to(folder)))
    return _read_shapes(folder / _WEIGHTS_FILE, config)


def _load_config(path: Path, base_model: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise _refuse("The folder has no readable adapter_config.json.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise _refuse("adapter_config.json does not describe a LoRA adapter.")
    if config.get("base_model_name_or_path") != base_model:
        raise _refuse(f"adapter_config.json names another base model than {base_model}.")
    for name in _REFUSED_SETTINGS:
        if config.get(name):
            raise _refuse(f"adapter_config.json sets {name}.")
    if config.get("bias", "none") != "none":
        raise _refuse("adapter_config.json sets bias.")
    targets = config.get("target_modules")
    if type(config.get("r")) is not int or not isinstance(targets, list) or not all(type(t) is str for t in targets):
        raise _refuse("adapter_config.json does not say which modules it adapts, or with which rank.")
    return config


def _check_file(file: Path, name: str) -> None:
    if file.is_symlink():
        raise _refuse(f"{name} is a link.")
    if name == _WEIGHTS_FILE:
        return
    if file.suffix not in _ALLOWED_SUFFIXES:
        raise _refuse(f"{name} does not belong in an adapter.")
    if file.stat().st_size > MAX_OTHER_FILE_BYTES:
        raise _refuse(f"{name} is larger than {MAX_OTHER_FILE_BYTES:,} bytes.")


def _read_shapes(weights: Path, config: dict[str, Any]) -> dict[str, list[int]]:
    if not weights.is_file():
        raise _refuse(f"The folder has no {_WEIGHTS_FILE}.")
    header = _read_header(weights)
    header.pop("__metadata__", None)
    shapes: dict[str, list[int]] = {name: entry["shape"] for name, entry in header.items()}
    layers: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        if not (match := _LORA_TENSOR.fullmatch(name)):
            raise _refuse(f"{_WEIGHTS_FILE} holds {name}, which is no LoRA matrix.")
        layers.setdefault(match["layer"], {})[match["kind"]] = shape
    if not layers:
        raise _refuse(f"{_WEIGHTS_FILE} holds no tensor.")
    for layer, found in layers.items():
        _check_layer(layer, found, config)
    return shapes


def _read_header(weights: Path) -> dict[str, dict[str, Any]]:
    """Layout: 8 bytes little-endian header length, JSON header, data (github.com/huggingface/safetensors#format)."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= MAX_HEADER_BYTES:
            raise _refuse(f"{_WEIGHTS_FILE} has a header of {length} bytes: it is no safetensors file.")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise _refuse(f"The header of {_WEIGHTS_FILE} is not JSON: it is no safetensors file.") from None
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise _refuse(f"The header of {_WEIGHTS_FILE} does not list tensors.")
    data_bytes = sum(_count_bytes(entry) for name, entry in header.items() if name != "__metadata__")
    if weights.stat().st_size != 8 + length + data_bytes:
        raise _refuse(f"{_WEIGHTS_FILE} is not as long as its tensors: it is cut off, or carries something else.")
    return header


def _count_bytes(entry: dict[str, Any]) -> int:
    shape, dtype = entry.get("shape"), entry.get("dtype")
    if dtype not in _DTYPE_BYTES or not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise _refuse(f"{_WEIGHTS_FILE} has a tensor of shape {shape} and type {dtype}, which no LoRA matrix has.")
    return math.prod(shape) * _DTYPE_BYTES[dtype]


def _check_layer(layer: str, found: dict[str, list[int]], config: dict[str, Any]) -> None:
    """A is [r, in], B is [out, r]: their product updates a weight. DoRA adds the magnitude of each output, [out]."""
    if not any(f".{layer}".endswith(f".{target}") for target in config["target_modules"]):
        raise _refuse(f"{_WEIGHTS_FILE} adapts {layer}, which adapter_config.json does not name.")
    expected = {"lora_A.weight", "lora_B.weight"} | ({"lora_magnitude_vector"} if config.get("use_dora") else set())
    if found.keys() != expected:
        raise _refuse(f"{layer} has {', '.join(sorted(found))}, and should have {', '.join(sorted(expected))}.")
    a, b, rank = found["lora_A.weight"], found["lora_B.weight"], config["r"]
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
        raise _refuse(f"lora_A {a} and lora_B {b} of {layer} are not of the rank {rank} that adapter_config.json has.")
    if found.get("lora_magnitude_vector", b[:1]) != b[:1]:
        raise _refuse(f"lora_magnitude_vector {found['lora_magnitude_vector']} of {layer} does not fit lora_B {b}.")


def _refuse(message: str) -> VerificationError:
    return VerificationError("artifact_invalid", message, remedy="Train again; never load this folder.")
