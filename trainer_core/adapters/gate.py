"""The gate: what may be in a LoRA adapter's folder, told from names, sizes and the weights file's header. Torch-free.

Nothing here loads a tensor: an adapter that carries base weights or a pickle is refused before anything can run it.
Time and memory depend on the number of tensors, never on their size.
"""

import json
import math
from pathlib import Path
from typing import Any

from trainer_core.adapters.manifest import WEIGHTS_FILE as _WEIGHTS_FILE
from trainer_core.errors import VerificationError
from trainer_core.planning.model_facts import ModelFacts, load_model_facts

MAX_HEADER_BYTES = 600_000  # about 4,000 tensors; a model of 400B parameters with every layer adapted has 1,800
MAX_OTHER_BYTES = 64_000_000  # of all other files together; the largest tokenizers are about half of it
MAX_WIDTH = 1 << 20  # of a layer; the widest that exist are output heads over 262,144 tokens

_PREFIX = "base_model.model."
_KINDS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_ENTRY_FIELDS = {"dtype", "shape", "data_offsets"}
_METADATA: tuple[dict[str, str], ...] = ({}, {"format": "pt"})
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


def check_adapter_folder(folder: Path, *, base_model: str, base: Path | None = None) -> dict[str, list[int]]:
    """The shapes of the LoRA tensors by name. Raises VerificationError for anything but a LoRA adapter of the base.

    With the base's folder, layers must be as wide as the base's, and no more of them than it has. Raises ModelError
    where that folder holds no model.
    """
    config = _load_config(folder / "adapter_config.json", base_model)
    other_bytes = 0
    for file in sorted(folder.rglob("*")):
        if not file.is_dir() or file.is_symlink():
            other_bytes += _check_file(file, str(file.relative_to(folder)))
    if other_bytes > MAX_OTHER_BYTES:
        raise _refuse(f"The files beside {_WEIGHTS_FILE} are larger than {MAX_OTHER_BYTES:,} bytes together.")
    shapes = _read_shapes(folder / _WEIGHTS_FILE, config)
    if base is not None:
        _check_against_base(shapes, config, base)
    return shapes


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


def _check_file(file: Path, name: str) -> int:
    """Its bytes, unless it is the weights."""
    if file.is_symlink() or not file.is_file():
        raise _refuse(f"{name} is a link, or no plain file.")
    if name == _WEIGHTS_FILE:
        return 0
    if file.suffix not in _ALLOWED_SUFFIXES:
        raise _refuse(f"{name} does not belong in an adapter.")
    return file.stat().st_size


def _read_shapes(weights: Path, config: dict[str, Any]) -> dict[str, list[int]]:
    if not weights.is_file():
        raise _refuse(f"The folder has no {_WEIGHTS_FILE}.")
    header = _read_header(weights)
    header.pop("__metadata__", None)
    shapes: dict[str, list[int]] = {name: entry["shape"] for name, entry in header.items()}
    layers: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        layer, kind = _split_name(name)
        layers.setdefault(layer, {})[kind] = shape
    if not layers:
        raise _refuse(f"{_WEIGHTS_FILE} holds no tensor.")
    for layer, found in layers.items():
        _check_layer(layer, found, config)
    return shapes


def _split_name(name: str) -> tuple[str, str]:
    """PEFT's name of a LoRA tensor: the layer in the base, and which of its matrices it is."""
    kind = next((kind for kind in _KINDS if name.endswith(f".{kind}")), "")
    layer = name.removeprefix(_PREFIX).removesuffix(f".{kind}")
    if not (kind and layer and name == f"{_PREFIX}{layer}.{kind}"):
        raise _refuse(f"{_WEIGHTS_FILE} holds {name}, which is no LoRA matrix.")
    return layer, kind


def _read_header(weights: Path) -> dict[str, dict[str, Any]]:
    """Layout: 8 bytes little-endian header length, JSON header, data (github.com/huggingface/safetensors#format)."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= MAX_HEADER_BYTES:
            raise _refuse(f"{_WEIGHTS_FILE} has a header of {length} bytes: it is no safetensors file of an adapter.")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise _refuse(f"The header of {_WEIGHTS_FILE} is not JSON: it is no safetensors file.") from None
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise _refuse(f"The header of {_WEIGHTS_FILE} does not list tensors.")
    if header.get("__metadata__", {}) not in _METADATA or length > len(json.dumps(header)) + 8:
        raise _refuse(f"The header of {_WEIGHTS_FILE} carries more than the tensors' names, types and places.")
    data_bytes = _measure_data([entry for name, entry in header.items() if name != "__metadata__"])
    if weights.stat().st_size != 8 + length + data_bytes:
        raise _refuse(f"{_WEIGHTS_FILE} is not as long as its tensors: it is cut off, or carries something else.")
    return header


def _measure_data(entries: list[dict[str, Any]]) -> int:
    """Bytes of all tensors, which stand one behind the other: between them, something could hide."""
    sizes: dict[int, int] = {}
    total = 0
    for entry in entries:
        size, begin = _count_bytes(entry), _find_begin(entry)
        if entry.keys() != _ENTRY_FIELDS or entry["data_offsets"] != [begin, begin + size]:
            raise _refuse(f"{_WEIGHTS_FILE} has a tensor at {entry.get('data_offsets')}, which takes {size} bytes.")
        sizes[begin] = size
        total += size
    end = 0
    while end in sizes:
        end += sizes.pop(end)
    if sizes or end != total:
        raise _refuse(f"The tensors of {_WEIGHTS_FILE} overlap, or leave room between them.")
    return end


def _find_begin(entry: dict[str, Any]) -> int:
    match entry.get("data_offsets"):
        case [int(begin), int()]:
            return begin
    raise _refuse(f"{_WEIGHTS_FILE} does not say where its tensors are.")


def _count_bytes(entry: dict[str, Any]) -> int:
    shape, dtype = entry.get("shape"), entry.get("dtype")
    if dtype not in _DTYPE_BYTES or not isinstance(shape, list) or not all(map(_is_width, shape)):
        raise _refuse(f"{_WEIGHTS_FILE} has a tensor of shape {shape} and type {dtype}, which no LoRA matrix has.")
    return math.prod(shape) * _DTYPE_BYTES[dtype]


def _is_width(number: object) -> bool:
    return type(number) is int and 0 < number <= MAX_WIDTH


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


def _check_against_base(shapes: dict[str, list[int]], config: dict[str, Any], base: Path) -> None:
    """A file may hold LoRA's names and shapes only, and still carry what no layer of the base has a place for."""
    facts = load_model_facts(base)
    layers = {layer.name: {layer.num_inputs, layer.num_outputs} for layer in facts.linear_layers}
    for name, a in shapes.items():
        if name.endswith(".lora_A.weight"):
            layer, _ = _split_name(name)
            widths = {a[1], shapes[name.replace(".lora_A.", ".lora_B.")][0]}
            if layers.get(layer, widths) != widths:
                raise _refuse(f"{layer} of the base is {layers[layer]} wide, the adapter's {widths}.")
    expected = _count_weights(facts, config)
    found = sum(math.prod(shape) for shape in shapes.values())
    if found > expected:
        raise _refuse(f"{_WEIGHTS_FILE} holds {found:,} values; an adapter of this base has at most {expected:,}.")


def _count_weights(facts: ModelFacts, config: dict[str, Any]) -> int:
    names = config["target_modules"]
    # A library may name a layer otherwise than the base's files do: then the bound is that of every layer.
    targets = facts.list_targets(names if all(facts.list_targets([name]) for name in names) else "all-linear")
    num_magnitudes = sum(layer.num_outputs for layer in targets) if config.get("use_dora") else 0
    rank: int = config["r"]
    return num_magnitudes + sum(rank * (layer.num_inputs + layer.num_outputs) for layer in targets)


def _refuse(message: str) -> VerificationError:
    return VerificationError("artifact_invalid", message, remedy="Train again; never load this folder.")
