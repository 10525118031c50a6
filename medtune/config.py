"""Where the service is, and with which key: an argument before the environment, that before `medtune.toml`.

The file is read only for what the others leave open.
"""

import os
import re
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

_DEFAULT_HOST, _DEFAULT_PORT = "127.0.0.1", "8000"
_KEYS = ("url", "api_key")


class ConfigError(ValueError):
    """What is set does not lead to a service; the message says where and how to change it."""


@dataclass(frozen=True)
class ClientConfig:
    url: str
    api_key: str = field(repr=False)


def load_config(url: str | None = None, api_key: str | None = None) -> ClientConfig:
    """Raises ConfigError."""
    url = url or _find_url()
    api_key = api_key or os.environ.get("MEDTUNE_API_KEY")
    path = find_config_file()
    found = {} if url and api_key else _read_file(path)
    url = url or found.get("url") or f"http://{_DEFAULT_HOST}:{_DEFAULT_PORT}"
    api_key = api_key or found.get("api_key")
    if not api_key:
        raise ConfigError(
            f"there is no API key: MEDTUNE_API_KEY is not set, and {path} has no api_key; "
            "`medtune serve` prints a key, `medtune keys create` makes one"
        )
    _check_url(url)
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ConfigError("the API key holds blanks or characters that no key has; copy it again")
    return ClientConfig(url, api_key)


def find_config_file() -> Path:
    """As the XDG base directories say: a path that is not absolute counts as not set."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (folder if folder.is_absolute() else Path("~/.config").expanduser()) / "medtune.toml"


def _find_url() -> str | None:
    """A host or a port alone is the server's own setting, on its machine."""
    if url := os.environ.get("MEDTUNE_PUBLIC_URL"):
        return url
    host, port = os.environ.get("MEDTUNE_HOST"), os.environ.get("MEDTUNE_PORT")
    return f"http://{host or _DEFAULT_HOST}:{port or _DEFAULT_PORT}" if host or port else None


def _read_file(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read().decode()
            values = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no TOML: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:  # It names line and column.
        raise ConfigError(f"{path} is no TOML: {error}") from None
    _check_values(path, text, values)
    if "api_key" in values and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{path} holds a key and has the mode {mode:04o}: others can read or change it; run: chmod 600 {path}"
        )
    return values


def _check_values(path: Path, text: str, values: dict[str, Any]) -> None:
    for key, value in values.items():
        place = f"{path}, line {_find_line(text, key)}"
        if key not in _KEYS:
            raise ConfigError(f"{place}: there is no setting {key!r}; there are {' and '.join(_KEYS)}")
        if not isinstance(value, str):
            raise ConfigError(f"{place}: {key} must be a text in quotes")


def _find_line(text: str, key: str) -> int:
    found = re.search(rf"""^\s*\[*\s*["']?{re.escape(key)}\b""", text, re.MULTILINE)
    return text.count("\n", 0, found.end()) + 1 if found else 1


def _check_url(url: str) -> None:
    try:
        parsed = httpx.URL(url)
        is_right = parsed.scheme in ("http", "https") and bool(parsed.host)
    except httpx.InvalidURL:
        is_right = False
    if not is_right:
        raise ConfigError(f"{url!r} is no URL of a service; write it as https://medtune.example")
