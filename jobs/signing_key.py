"""The key that this installation signs adapters with. Only workers read it; it never reaches a trainer."""

import secrets
import stat
from pathlib import Path

from jobs.secret_files import load_or_create_secret
from jobs.settings import Settings
from trainer_core.adapters.signature import build_public_pem, create_private_key, load_private_key
from trainer_core.errors import ConfigurationError

_PUBLIC_FILE = "signing-key.pub"


def ensure_signing_key(settings: Settings) -> Path:
    """The private key's file, with the public half in `HOME/signing-key.pub`. Without a configured one, the home gets
    one of its own. Raises ConfigurationError for a file that is no such key, or that others can read.
    """
    path = settings.signing_key_file
    if path is None:
        path = settings.home / "signing-key.pem"
        load_or_create_secret(path, create_private_key)
    path = path.expanduser().absolute()
    _check_mode(path)
    _publish(settings.home / _PUBLIC_FILE, build_public_pem(load_private_key(path).public_key()))
    return path


def find_public_key(settings: Settings) -> Path | None:
    """Of what this installation signed last."""
    path = settings.home / _PUBLIC_FILE
    return path if path.is_file() else None


def _check_mode(path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        remedy = "Set MEDTUNE_SIGNING_KEY_FILE to a file that the worker can read."
        message = f"The signing key {path.name} cannot be read: {error.strerror}."
        raise ConfigurationError("signing_key_invalid", message, remedy=remedy) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = f"The signing key {path.name} has the mode {mode:04o}: others than its owner can read or change it."
        raise ConfigurationError("signing_key_invalid", message, remedy=f"Let nobody else: chmod 600 {path.name}")


def _publish(path: Path, pem: bytes) -> None:
    """Whole or not at all: several workers do the same."""
    if path.is_file() and path.read_bytes() == pem:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    partial.write_bytes(pem)
    partial.replace(path)
