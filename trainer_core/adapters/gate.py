"""The gate: what may be in a LoRA adapter's folder, told from names, sizes and the weights file's header. Torch-free.

Nothing here loads a tensor: an adapter that carries base weights or a pickle is refused before anything can run it.
"""

import json
import math
import re
from pathlib import Path

from trainer_core.errors import VerificationError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_OTHER_FILE_BYTES = 64_000_000  # the largest tokenizers are about half of it

_WEIGHTS_FILE = "adapter_model.safetensors"
_LORA_TENSOR = re.compile(r"base_model\.model\..+\.lora_(A|B)\.weight")
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_ALLOWED_SUFFIXES = {".json", ".jinja", ".md", ".model", ".txt", ".sig"}


def check_adapter_folder(folder: Path, *, base_model: str) -> dict[str, list[int]]:
    """The shapes of the LoRA tensors by name. Raises VerificationError for anything but a LoRA adapter of the base."""
    _check_config(folder / "adapter_config.json", base_model)
    for file in sorted(folder.rglob("*")):
        if file.is_file() or file.is_symlink():
            _check_file(file, str(file.relative_to(folder)))
    return _read_shapes(folder / _WEIGHTS_FILE)


def _check_config(path: Path, base_model: str) -> None:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise _refuse("The folder has no readable adapter_config.json.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise _refuse("adapter_config.json does not describe a LoRA adapter.")
    if config.get("base_model_name_or_path") != base_model:
        raise _refuse(f"adapter_config.json names another base model than {base_model}.")
    for key in ("auto_mapping", "modules_to_save"):  # a module to import; whole layers of the base
        if config.get(key):
            raise _refuse(f"adapter_config.json sets {key}.")


def _check_file(file: Path, name: str) -> None:
    if file.is_symlink():
        raise _refuse(f"{name} is a link.")
    if name == _WEIGHTS_FILE:
        return
    if file.suffix not in _ALLOWED_SUFFIXES:
        raise _refuse(f"{name} does not belong in an adapter.")
    if file.stat().st_size > MAX_OTHER_FILE_BYTES:
        raise _refuse(f"{name} is larger than {MAX_OTHER_FILE_BYTES:,} bytes.")


def _read_shapes(weights: Path) -> dict[str, list[int]]:
    if not weights.is_file():
        raise _refuse(f"The folder has no {_WEIGHTS_FILE}.")
    header = _read_header(weights)
    header.pop("__metadata__", None)
    shapes = {name: _check_tensor(name, entry) for name, entry in header.items()}
    if not shapes:
        raise _refuse(f"{_WEIGHTS_FILE} holds no tensor.")
    _check_pairs(shapes)
    return shapes


def _read_header(weights: Path) -> dict[str, dict[str, object]]:
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


def _count_bytes(entry: dict[str, object]) -> int:
    shape, dtype = entry.get("shape"), entry.get("dtype")
    if dtype not in _DTYPE_BYTES or not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise _refuse(f"{_WEIGHTS_FILE} has a tensor of shape {shape} and type {dtype}, which no LoRA matrix has.")
    return math.prod(shape) * _DTYPE_BYTES[str(dtype)]


def _check_tensor(name: str, entry: dict[str, object]) -> list[int]:
    shape = entry["shape"]
    if not _LORA_TENSOR.fullmatch(name) or not isinstance(shape, list) or len(shape) != 2:
        raise _refuse(f"{_WEIGHTS_FILE} holds {name}, which is no LoRA matrix.")
    return shape


def _check_pairs(shapes: dict[str, list[int]]) -> None:
    """A is [r, in], B is [out, r]: the product is a weight's update."""
    for name, shape in shapes.items():
        is_a = name.endswith(".lora_A.weight")
        partner = name.replace(".lora_A.", ".lora_B.") if is_a else name.replace(".lora_B.", ".lora_A.")
        if partner not in shapes:
            raise _refuse(f"{name} has no partner {partner}.")
        if is_a and shape[0] != shapes[partner][1]:
            raise _refuse(f"{name} {shape} and {partner} {shapes[partner]} do not multiply.")


def _refuse(message: str) -> VerificationError:
    return VerificationError("artifact_invalid", message, remedy="Train again; never load this folder.")
