"""The key that adapters are signed with belongs to its owner alone."""

import stat
from pathlib import Path

import pytest

from jobs.settings import Settings
from jobs.signing_key import ensure_signing_key, find_public_key
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
    assert [path.name for path in settings.home.glob("*.pub*")] == ["signing-key.pub"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_key_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    private, _ = create_keys(tmp_path)
    private.chmod(mode)

    with pytest.raises(ConfigurationError, match=f"{mode:04o}") as caught:
        ensure_signing_key(Settings(home=tmp_path, signing_key_file=private))

    assert "chmod 600" in caught.value.remedy


@pytest.mark.parametrize("content", ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    path.write_text(content)

    with pytest.raises(ConfigurationError, match="cannot be read as a private key") as caught:
        ensure_signing_key(Settings(home=tmp_path, signing_key_file=path))

    assert caught.value.code == "signing_key_invalid"


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        ensure_signing_key(Settings(home=tmp_path, signing_key_file=tmp_path / "none.pem"))

    assert "MEDTUNE_SIGNING_KEY_FILE" in caught.value.remedy
