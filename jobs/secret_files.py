"""Secrets that a home makes for itself."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def load_or_create_secret(path: Path, create: Callable[[], str]) -> str:
    """The file's content. Of several processes that find none, the first makes it, whole, and all read the same."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        candidate = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        candidate.touch(mode=0o600)
        try:
            candidate.write_text(create(), encoding="ascii")
            with suppress(FileExistsError):  # Another process was first, and its secret is the one.
                path.hardlink_to(candidate)
        finally:
            candidate.unlink()
    return path.read_text(encoding="ascii")
