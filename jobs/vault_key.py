"""The key of the vault. Only workers that check datasets, and the operator's command, read it."""

from pathlib import Path

from jobs.secret_files import ensure_secret
from jobs.settings import Settings
from trainer_core.data.phi.vault import Keyring, create_secret, load_keyring


def load_vault_keyring(settings: Settings) -> Keyring:
    """Without a configured one, the home gets one of its own. Raises ConfigurationError and OSError for a file that is
    no such key, or that others can read.
    """
    path = get_vault_key_file(settings)
    if settings.vault_key_file is None:
        ensure_secret(path, create_secret)
    return load_keyring(path)


def find_vault_keyring(settings: Settings) -> Keyring | None:
    """None where the home has yet to get its own. Makes nothing. Raises ConfigurationError, OSError."""
    path = get_vault_key_file(settings)
    if settings.vault_key_file is None and not path.exists():
        return None
    return load_keyring(path)


def get_vault_key_file(settings: Settings) -> Path:
    """Where it is to be."""
    return (settings.vault_key_file or settings.home / "vault-key.txt").expanduser().absolute()
