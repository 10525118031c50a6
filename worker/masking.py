"""Takes secrets out of what a run says, before anything of it is stored.

Two kinds: the service's own, letter by letter, and what looks like a key of a well-known kind. A trainer has none of
the service's secrets; this is for code that a site puts into a run, for tracebacks, and for whoever prints too much. It
does not stop a run that means to tell: any encoding passes.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from jobs.settings import Settings
from jobs.signing_key import get_signing_key_file
from jobs.vault_key import get_vault_key_file

MASK = b"[secret]"
_SHORTEST = 8
"""A shorter value is no secret, and would be found everywhere."""
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE)
_PATHS = ("_FILE", "_DIR", "_PATH", "_URL")
"""Ends of variables that only say where something is."""

_KINDS: tuple[tuple[bytes, re.Pattern[bytes]], ...] = tuple(
    (text, re.compile(re.escape(text) + rb"(?<![A-Za-z0-9]" + re.escape(text) + rb")" + rest))
    for text, rest in (
        (b"mt_", rb"[A-Za-z0-9_-]{32,}"),
        (b"hf_", rb"[A-Za-z0-9]{20,}"),
        (b"ghp_", rb"[A-Za-z0-9]{20,}"),
        (b"gho_", rb"[A-Za-z0-9]{20,}"),
        (b"ghs_", rb"[A-Za-z0-9]{20,}"),
        (b"github_pat_", rb"[A-Za-z0-9_]{20,}"),
        (b"AKIA", rb"[A-Z0-9]{16}(?![A-Za-z0-9])"),
        (b"ASIA", rb"[A-Z0-9]{16}(?![A-Za-z0-9])"),
        (b"sk-", rb"[A-Za-z0-9_-]{20,}"),
        (b"eyJ", rb"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"),  # A JSON web token.
    )
)
"""What each begins with, and the whole. Most text has none of the beginnings, which is found out in no time."""
_URL_PASSWORD = re.compile(rb"(://[^\s/:@\"'\\]*:)[^\s/@\"'\\]+(?=@)")


class Masker:
    """Of one process: the secrets are collected once."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first: one may be a part of another.
        self._secrets = sorted((secret.encode() for secret in secrets), key=len, reverse=True)

    def mask(self, data: bytes) -> bytes:
        """Whole lines, or pieces of one that were not cut within a word."""
        for secret in self._secrets:
            if secret in data:
                data = data.replace(secret, MASK)
        for beginning, kind in _KINDS:
            if beginning in data:
                data = kind.sub(MASK, data)
        return _URL_PASSWORD.sub(rb"\1" + MASK, data) if b"://" in data else data


def build_masker(settings: Settings, environment: Mapping[str, str] = os.environ) -> Masker:
    """It knows all secrets that this process has: of the settings, of its environment, and of the files they name."""
    found = {value for name, value in environment.items() if _SECRET_NAME.search(name) and not name.endswith(_PATHS)}
    for value in (getattr(settings, name) for name in Settings.model_fields):
        if isinstance(value, SecretStr):
            found |= _split_url(value.get_secret_value())
    for path in (settings.safety_guard_key_file, settings.home / "secret_key", get_signing_key_file(settings)):
        found |= _read_lines(path)
    for line in _read_lines(get_vault_key_file(settings)):
        found |= {line, line.split(" ")[-1]}  # A version and the key.
    return Masker(secret for secret in found if len(secret) >= _SHORTEST)


def _split_url(value: str) -> set[str]:
    """A URL itself says no more than where a server is; its password is the secret."""
    if "://" not in value:
        return {value}
    password = urlsplit(value).password
    return set() if password is None else {password, unquote(password)}


def _read_lines(path: Path | None) -> set[str]:
    if path is None:
        return set()
    with suppress(OSError, UnicodeDecodeError):
        return {line.strip() for line in path.read_text(encoding="utf-8").splitlines()}
    return set()
