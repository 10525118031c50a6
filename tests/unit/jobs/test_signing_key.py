"""The key that adapters are signed with belongs to its owner alone."""

import hashlib
import stat
from pathlib import Path

import pytest

from jobs.settings import Settings
from jobs.signing_key import ensure_signing_key, find_public_key, find_signing_key
from tests.adapters import create_keys
from trainer_core.adapters.signature import build_public_pem, load_private_key
from trainer_core.errors import ConfigurationError


def test_a_home_makes_its_own_key_once(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    assert find_public_key(settings) is None

    path = ensure_signing_key(settings)
    content = path.read_bytes()

    assert path == settings.home / "signing-key.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_signing_key(settings).read_bytes() == content
    public = find_public_key(settings)
    assert public == settings.home / "signing-key.pub"
    assert public.read_bytes() == build_public_pem(load_private_key(path).public_key())


def test_a_configured_key_is_used_and_its_public_half_published(tmp_path: Path) -> None:
    ensure_signing_key(Settings(home=tmp_path / "home"))
    private, public = create_keys(tmp_path)
    settings = Settings(home=tmp_path / "home", signing_key_file=private)

    assert ensure_signing_key(settings) == private
    published = find_public_key(settings)
    assert published is not None
    assert published.read_bytes() == public.read_bytes()
    kept, newest = sorted(settings.home.glob("*.pub*"))
    assert newest.name == "signing-key.pub"
    own = load_private_key(settings.home / "signing-key.pem").public_key()
    assert kept.read_bytes() == build_public_pem(own)  # It checks what was signed before.
    assert kept.name == f"signing-key-{hashlib.sha256(kept.read_bytes()).hexdigest()[:16]}.pub"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_key_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    private, _ = create_keys(tmp_path)
    private.chmod(mode)

    with pytest.raises(ConfigurationError, match=f"{mode:04o}") as caught:
        ensure_signing_key(Settings(home=tmp_path, signing_key_file=private))

    assert "chmod 600" in caught.value.remedy


NO_KEYS = [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", bytes(range(128, 256))]


@pytest.mark.parametrize("content", NO_KEYS)
@pytest.mark.parametrize("is_configured", [True, False])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes, is_configured: bool) -> None:
    path = tmp_path / "signing-key.pem"
    path.touch(mode=0o600)
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match="cannot be read as a private key") as caught:
        ensure_signing_key(Settings(home=tmp_path, signing_key_file=path if is_configured else None))

    assert caught.value.code == "signing_key_invalid"
    assert path.read_bytes() == content


def test_a_folder_in_the_keys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "signing-key.pem").mkdir(mode=0o700)

    with pytest.raises(ConfigurationError, match="Is a directory"):
        ensure_signing_key(Settings(home=tmp_path))


def test_the_homes_key_that_is_gone_is_not_replaced(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    key = ensure_signing_key(settings)
    content, public = key.read_bytes(), tmp_path / "signing-key.pub"
    published = public.read_bytes()
    key.unlink()

    with pytest.raises(ConfigurationError, match="is gone") as caught:
        ensure_signing_key(settings)

    assert caught.value.code == "signing_key_missing"
    assert "backup" in caught.value.remedy
    assert (key.exists(), public.read_bytes()) == (False, published)
    key.touch(mode=0o600)
    key.write_bytes(content)
    assert ensure_signing_key(settings) == key
    key.unlink()
    public.unlink()  # As the remedy says, to sign with a new one.
    assert ensure_signing_key(settings).read_bytes() != content


def test_to_look_for_a_key_makes_none(tmp_path: Path) -> None:
    assert find_signing_key(Settings(home=tmp_path / "home")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        ensure_signing_key(Settings(home=tmp_path, signing_key_file=tmp_path / "none.pem"))

    assert "MEDTUNE_SIGNING_KEY_FILE" in caught.value.remedy
