"""Which base an adapter was trained on, told from the base's files. Torch-free.

The fingerprint is the sha256 over config.json and every tensor's name, type, shape and first 4,096 bytes. So it takes a
moment for a model of any size, does not depend on how the tensors are cut into files, and differs between two models
of the same shape. It is no proof that every byte is the same.
"""

import hashlib
import json
from pathlib import Path

BYTES_PER_TENSOR = 4096

_INDEX = "model.safetensors.index.json"


def compute_base_fingerprint(folder: Path) -> str:
    """As `sha256:...`. Raises OSError, ValueError for a folder that holds no model in safetensors."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    tensors: dict[str, bytes] = {}
    for file in _list_weight_files(folder):
        tensors |= _hash_tensors(file)
    for name in sorted(tensors):
        digest.update(tensors[name])
    return f"sha256:{digest.hexdigest()}"


def _list_weight_files(folder: Path) -> list[Path]:
    """Those that the model is loaded from: some folders hold the weights in a second form beside them."""
    if (folder / _INDEX).is_file():
        weight_map = json.loads((folder / _INDEX).read_bytes())["weight_map"]
        return [folder / name for name in sorted(set(weight_map.values()))]
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise FileNotFoundError(f"{folder} has no *.safetensors")
    return files


def _hash_tensors(path: Path) -> dict[str, bytes]:
    """By name. Layout: 8 bytes little-endian header length, JSON header, data."""
    hashes = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            description = json.dumps([name, entry["dtype"], entry["shape"]]).encode()
            hashes[name] = hashlib.sha256(description + file.read(min(end - begin, BYTES_PER_TENSOR))).digest()
    return hashes
