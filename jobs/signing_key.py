"""The key that this installation signs adapters with. Only workers read it; it never reaches a trainer."""

import hashlib
import logging
import secrets
import stat
from pathlib import Path

from jobs.secret_files import ensure_secret
from jobs.settings import Settings
from trainer_core.adapters.signature import build_public_pem, create_private_key, load_private_key
from trainer_core.errors import ConfigurationError

logger = logging.getLogger(__name__)

_PUBLIC_FILE = "signing-key.pub"


def ensure_signing_key(settings: Settings) -> Path:
    """The private key's file, with the public half in `HOME/signing-key.pub`. Without a configured one, the home gets
    one of its own. Raises what `find_signing_key` does, and OSError.
    """
    path = find_signing_key(settings)
    if path is None:
        path = get_signing_key_file(settings)
        ensure_secret(path, create_private_key)
    _publish(settings.home / _PUBLIC_FILE, build_public_pem(load_private_key(path).public_key()))
    return path


def find_signing_key(settings: Settings) -> Path | None:
    """A file that can be signed with; None where the home has yet to get its own. Makes nothing.

    Raises ConfigurationError for a file that is no such key, that others can read, or that is gone: another key in its
    place would sign what the published half does not check.
    """
    public_key, path = find_public_key(settings), get_signing_key_file(settings)  # Whoever makes both, this one last.
    if settings.signing_key_file is None and not path.exists():
        if public_key is None:
            return None
        message = f"The signing key {path.name} is gone, and {public_key.name} says that there was one."
        remedy = (
            f"Put {path.name} back from a backup, mode 0600, or set MEDTUNE_SIGNING_KEY_FILE. To sign with a new key "
            f"from now on, move {public_key.name} out of the home: it checks the adapters that were signed before."
        )
        raise ConfigurationError("signing_key_missing", message, remedy=remedy)
    _check_mode(path)
    load_private_key(path)
    return path


def get_signing_key_file(settings: Settings) -> Path:
    """Where it is to be."""
    return (settings.signing_key_file or settings.home / "signing-key.pem").expanduser().absolute()


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
    """Whole or not at all: several workers do the same. An earlier key's half stays under a name of its own."""
    if path.is_file():
        earlier = path.read_bytes()
        if earlier == pem:
            return
        kept = path.with_name(f"{path.stem}-{hashlib.sha256(earlier).hexdigest()[:16]}{path.suffix}")
        _write_whole(kept, earlier)
        logger.warning("another key than before signs adapters now; %s checks the earlier ones", kept.name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_whole(path, pem)


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
