"""The key of the vault. Only workers that check datasets, and the operator's command, read it."""

from pathlib import Path

from jobs.secret_files import load_or_create_secret
from jobs.settings import Settings
from trainer_core.data.phi.vault import Keyring, create_secret, load_keyring


def ensure_vault_key(settings: Settings) -> Path:
    """Its file. Without a configured one, the home gets one of its own. Raises ConfigurationError and OSError for a
    file that is no such key, or that others can read.
    """
    if settings.vault_key_file is None:
        load_or_create_secret(get_vault_key_file(settings), create_secret)
    path = get_vault_key_file(settings)
    load_keyring(path)
    return path


def get_vault_key_file(settings: Settings) -> Path:
    """Where it is to be."""
    return (settings.vault_key_file or settings.home / "vault-key.txt").expanduser().absolute()


def load_vault_keyring(settings: Settings) -> Keyring:
    """Raises ConfigurationError, OSError."""
    return load_keyring(ensure_vault_key(settings))
