"""Where the client finds the service and its key."""

from pathlib import Path

import pytest

from medtune import ConfigError
from medtune.config import ClientConfig, load_config


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "medtune.toml"
    path.touch(mode=0o600)
    return path


def test_the_file_says_url_and_key(file: Path) -> None:
    file.write_text('url = "https://medtune.example"\napi_key = "mt_file"\n')

    assert load_config() == ClientConfig("https://medtune.example", "mt_file")


def test_an_argument_comes_before_the_environment_and_that_before_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('url = "https://file.example"\napi_key = "mt_file"\n')
    monkeypatch.setenv("MEDTUNE_PUBLIC_URL", "https://environment.example")

    assert load_config() == ClientConfig("https://environment.example", "mt_file")
    assert load_config("https://argument.example") == ClientConfig("https://argument.example", "mt_file")
    monkeypatch.setenv("MEDTUNE_API_KEY", "mt_environment")
    assert load_config().api_key == "mt_environment"
    assert load_config(api_key="mt_argument").api_key == "mt_argument"


def test_a_port_alone_is_a_service_of_this_machine(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('url = "https://file.example"\napi_key = "mt_file"\n')
    monkeypatch.setenv("MEDTUNE_PORT", "8123")

    assert load_config().url == "http://127.0.0.1:8123"


def test_without_anything_the_service_is_here(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.unlink()
    monkeypatch.setenv("MEDTUNE_API_KEY", "mt_environment")
    monkeypatch.setenv("MEDTUNE_PUBLIC_URL", "")  # As not set.

    assert load_config().url == "http://127.0.0.1:8000"


def test_the_file_is_in_the_home_when_no_folder_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".config").mkdir()
    file = tmp_path / ".config" / "medtune.toml"
    file.touch(mode=0o600)
    file.write_text('api_key = "mt_home"\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)

        assert load_config().api_key == "mt_home"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('url = "https://a.example"\napi_key = mt_x\n', ("no TOML", "line 2")),
        ('\nurl = "https://a.example"\napikey = "mt_x"\n', ("line 3", "'apikey'", "url and api_key")),
        ('api_key = "mt_x"\nurl = 8000\n', ("line 2", "url must be a text")),
        ('api_key = "mt_x"\nurl = "medtune.example"\n', ("'medtune.example'", "https://")),
        ('api_key = "mt_ x"\n', ("API key",)),
        ('url = "https://a.example"\n', ("no API key", "MEDTUNE_API_KEY", "medtune keys create")),
        ("\xff", ("no TOML", "UTF-8")),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line(file: Path, text: str, words: tuple[str, ...]) -> None:
    file.write_bytes(text.encode("latin-1"))

    with pytest.raises(ConfigError) as refusal:
        load_config()

    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused(file: Path, mode: int) -> None:
    file.write_text('api_key = "mt_secret"\n')
    file.chmod(mode)

    with pytest.raises(ConfigError, match=f"chmod 600 {file}") as refusal:
        load_config()

    assert "mt_secret" not in str(refusal.value)


def test_a_file_without_a_key_may_be_read_by_all(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('url = "https://medtune.example"\n')
    file.chmod(0o644)
    monkeypatch.setenv("MEDTUNE_API_KEY", "mt_environment")

    assert load_config().url == "https://medtune.example"


def test_a_key_is_not_in_the_configurations_text() -> None:
    assert "mt_secret" not in repr(ClientConfig("https://medtune.example", "mt_secret"))
