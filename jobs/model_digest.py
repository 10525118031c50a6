"""A digest of a base model's folder: what is registered by it can no longer change unseen."""

import functools
import hashlib
from pathlib import Path

from trainer_core.adapters.fingerprint import compute_base_fingerprint

_SMALL_FILES = (".json", ".jinja", ".model", ".txt", ".py")
"""Configuration, tokenizer, chat template, and code that an operator trusts."""


def compute_digest(folder: Path) -> str:
    """As `sha256:...`, over the base's fingerprint (each tensor's name, type, shape and first bytes) and every byte of
    the small files beside the weights. Kept until a file changes. Raises OSError, ValueError.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix in (*_SMALL_FILES, ".safetensors"))
    stats = [path.stat() for path in paths]
    return _compute_digest(folder, tuple((p.name, s.st_mtime_ns, s.st_size) for p, s in zip(paths, stats, strict=True)))


@functools.lru_cache(maxsize=64)
def _compute_digest(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256(compute_base_fingerprint(folder).encode())
    for name, _, _ in files:
        if not name.endswith(".safetensors"):
            content = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            digest.update(f"\n{name}\0{content}".encode())
    return f"sha256:{digest.hexdigest()}"
