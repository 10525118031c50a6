"""Secrets that a home makes for itself."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def ensure_secret(path: Path, create: Callable[[], str]) -> None:
    """Of several processes that find no such file, the first makes it, whole. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        return
    candidate = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    candidate.touch(mode=0o600)
    try:
        with candidate.open("w", encoding="ascii") as file:
            file.write(create())
            file.flush()
            os.fsync(file.fileno())  # What is signed or encrypted with it may outlive the machine's power.
        with suppress(FileExistsError):  # Another process was first, and its secret is the one.
            path.hardlink_to(candidate)
    finally:
        candidate.unlink()


def load_or_create_secret(path: Path, create: Callable[[], str]) -> str:
    """The file's content; all processes read the same. Raises OSError."""
    ensure_secret(path, create)
    return path.read_text(encoding="ascii")
