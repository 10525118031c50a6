"""The vault: which token stands for whom, encrypted, for those who hold the key.

A value is found by its blind index (HMAC-SHA256 of scope, type and value) without decrypting anything, and read by
AES-256-GCM, which also proves that scope, type and token are those it was written with. All keys are derived from one
secret by HKDF. Whoever destroys the vault or every copy of its key makes the replacement irreversible.
"""

import base64
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BaseModel, ValidationError

from trainer_core.errors import ConfigurationError

SECRET_BYTES = 32
_NONCE_BYTES = 12
_KEY_LINE = re.compile(rf"([1-9]\d{{0,8}}) ([0-9a-f]{{{2 * SECRET_BYTES}}})")
_MAX_KEY_FILE_BYTES = 100_000
_FOREIGN_BITS = stat.S_IRWXG | stat.S_IRWXO


class VaultEntry(BaseModel):
    """One value of one scope. Nothing in it says what the value is, or whose patient key the scope."""

    scope: str
    """`row:LINE` of the file, or `patient:` and a keyed hash of the patient key; empty: every file of the key."""
    label: str
    """The type in the token, such as `PATIENT`."""
    token: str
    key_version: int
    blind_index: str
    nonce: str
    ciphertext: str


@dataclass(frozen=True)
class VaultKey:
    """One version of the secret, and the three keys that come from it."""

    version: int
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise _refuse("vault_key_malformed", f"A key has {SECRET_BYTES} bytes", "Make one: medtune vault key FILE.")

    def derive(self, purpose: str) -> bytes:
        return HKDF(SHA256(), SECRET_BYTES, salt=None, info=f"medtune {purpose}".encode()).derive(self.secret)


class Keyring:
    """All versions of a secret: the newest writes, each reads what it wrote."""

    def __init__(self, keys: list[VaultKey]) -> None:
        if not keys:
            raise _refuse("vault_key_missing", "There is no key", "Make one: medtune vault key FILE.")
        self._keys = {key.version: key for key in keys}
        newest = max(keys, key=lambda key: key.version)
        self.version = newest.version
        self._token_key = newest.derive("token")
        self._index_key = newest.derive("blind index")
        self._row_key = newest.derive("row")
        self._cipher = AESGCM(newest.derive("value"))

    def digest_token(self, label: str, value: str) -> str:
        """Hexadecimal HMAC-SHA256 of a value, the same in every file."""
        return _digest(self._token_key, label, value)

    def digest_row(self, row_hash: bytes, version: int | None = None) -> bytes:
        """HMAC-SHA256 of a row's hash: who has only the database cannot test guesses of the row. Raises
        ConfigurationError for a version that is not here.
        """
        key = self._row_key if version in (None, self.version) else self._get(version).derive("row")
        return hmac.digest(key, row_hash, "sha256")

    def hide_scope(self, patient: str) -> str:
        return "patient:" + _digest(self._index_key, "scope", patient)[:32]

    def encrypt(self, *, scope: str, label: str, token: str, value: str, original: str) -> VaultEntry:
        nonce = os.urandom(_NONCE_BYTES)
        entry = VaultEntry(
            scope=scope,
            label=label,
            token=token,
            key_version=self.version,
            blind_index=self.get_blind_index(scope, label, value),
            nonce=_encode(nonce),
            ciphertext="",
        )
        text = original.encode(errors="surrogatepass")
        return entry.model_copy(update={"ciphertext": _encode(self._cipher.encrypt(nonce, text, _authenticate(entry)))})

    def get_blind_index(self, scope: str, label: str, value: str, version: int | None = None) -> str:
        """By which a value is found; `value` is in the form of `values.get_value`."""
        key = self._index_key if version in (None, self.version) else self._get(version).derive("blind index")
        return _digest(key, scope, label, value)

    def decrypt(self, entry: VaultEntry) -> str:
        """What the token stands for. Raises ConfigurationError with a wrong key, or where the entry was changed."""
        cipher = (
            self._cipher if entry.key_version == self.version else AESGCM(self._get(entry.key_version).derive("value"))
        )
        try:
            text = cipher.decrypt(_decode(entry.nonce), _decode(entry.ciphertext), _authenticate(entry))
        except (InvalidTag, ValueError):
            raise _refuse(
                "vault_key_wrong",
                f"The key does not open the entry of {entry.token}",
                "Use the key that the vault was written with; or the entry was changed.",
            ) from None
        return text.decode(errors="surrogatepass")

    def check_versions(self, versions: Iterable[int]) -> None:
        """Raises ConfigurationError when one of them is not here."""
        for version in versions:
            self._get(version)

    def _get(self, version: int | None) -> VaultKey:
        if version not in self._keys:
            raise _refuse(
                "vault_key_wrong",
                f"The key file has no version {version}",
                "Use the key that the vault was written with; a new version is a further line beside the old ones.",
            )
        return self._keys[version]


def create_secret() -> str:
    """The content of a new key file."""
    return f"1 {secrets.token_hex(SECRET_BYTES)}\n"


def create_key_file(path: Path) -> None:
    """A new secret that only its owner may read. Raises FileExistsError: a key is never overwritten."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(create_secret())


def load_keyring(path: Path) -> Keyring:
    """Lines of a version and 64 hexadecimal digits; the highest writes. Raises ConfigurationError, OSError."""
    if not path.exists():
        raise _refuse("vault_key_missing", f"{path}: there is no key file", "Make one: medtune vault key FILE.")
    if path.stat().st_mode & _FOREIGN_BITS:
        raise _refuse("vault_key_readable", f"{path}: others may read the key", f"Run: chmod 600 {path}")
    lines = path.read_bytes()[:_MAX_KEY_FILE_BYTES].decode("ascii", "replace").split("\n")
    matches = [_KEY_LINE.fullmatch(line.strip()) for line in lines if line.strip()]
    keys = [VaultKey(int(match[1]), bytes.fromhex(match[2])) for match in matches if match]
    if len(keys) != len(matches) or len({key.version for key in keys}) != len(keys):
        raise _refuse(
            "vault_key_malformed",
            f"{path}: a line is no version and key",
            "Put the right file back, or make a first one: medtune vault key FILE.",
        )
    if not keys:
        raise _refuse(
            "vault_key_missing",
            f"{path}: there is no key in it",
            "Put the right file back, or make a first one: medtune vault key FILE.",
        )
    return Keyring(keys)


def iter_vault_entries(path: Path) -> Iterator[VaultEntry]:
    """Entries of a file of the command. Raises ConfigurationError, OSError."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield VaultEntry.model_validate_json(line)
            except ValidationError:
                raise _refuse(
                    "vault_damaged", f"{path.name}, line {number}: no entry of a vault", "Restore the file."
                ) from None


def _authenticate(entry: VaultEntry) -> bytes:
    return json.dumps([entry.scope, entry.label, entry.token, entry.key_version, entry.blind_index]).encode()


def _digest(key: bytes, *parts: str) -> str:
    return hmac.digest(key, json.dumps(parts).encode(), "sha256").hex()


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _refuse(code: str, message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(code, message, remedy=remedy)
