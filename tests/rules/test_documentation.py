"""docs/configuration.md names every setting, and none that does not exist."""

import json
import re
from pathlib import Path

import pytest
import yaml

from jobs.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
_VARIABLE = re.compile(r"\bMEDTUNE_[A-Z_]*[A-Z]\b")
_NOT_SETTINGS = {"MEDTUNE_API_KEY", "MEDTUNE_SECRETS_DIR"}
"""Read from the environment by the client commands, and before the settings."""


def test_every_setting_is_documented_and_every_documented_setting_exists() -> None:
    assert list(_read_table("Settings")) == [f"MEDTUNE_{name.upper()}" for name in Settings.model_fields]


def test_documented_defaults_are_those_of_the_code() -> None:
    documented = {name: cells[0] for name, cells in _read_table("Settings").items()}

    for name, field in Settings.model_fields.items():
        if field.default is not None and name != "trainer_command":
            default = json.dumps(field.default) if isinstance(field.default, list) else field.default
            assert documented[f"MEDTUNE_{name.upper()}"] == f"`{default}`", name


def test_every_setting_has_a_meaning_and_an_example() -> None:
    for name, cells in _read_table("Settings").items():
        assert len(cells) == 3, name
        assert all(cells), name


def test_documented_examples_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = {name: cells[2] for name, cells in _read_table("Settings").items() if "**Secret**" not in cells[1]}
    for name, example in examples.items():
        monkeypatch.setenv(name, example.strip("`"))

    settings = Settings()

    for name in examples:
        field = name.removeprefix("MEDTUNE_").lower()
        assert getattr(settings, field) not in (None, Settings.model_fields[field].default), f"{name} shows the default"


def test_secrets_are_marked_as_such() -> None:
    marked = {name for name, cells in _read_table("Settings").items() if "**Secret**" in cells[1]}

    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}

    assert marked == {f"MEDTUNE_{name.upper()}" for name in secret}


def test_no_page_names_a_variable_that_does_not_exist() -> None:
    known = _NOT_SETTINGS | {f"MEDTUNE_{name.upper()}" for name in Settings.model_fields}
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / ".env.example", ROOT / "docker-compose.yml"]

    named = {(page.name, name) for page in pages for name in _VARIABLE.findall(page.read_text(encoding="utf-8"))}

    assert {(page, name) for page, name in named if name not in known} == set()


def test_the_variables_beside_the_settings_are_documented() -> None:
    assert set(_read_table("Secrets by file")) | set(_read_table("Client commands")) == _NOT_SETTINGS


def test_the_compose_files_variables_are_documented_with_their_defaults() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    used = re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", compose)
    documented = {name: cells[0].strip("`") for name, cells in _read_table("Variables of the compose file").items()}

    assert {name for name, _ in used} == set(documented)
    assert {(name, default) for name, default in used if default} == set(documented.items())


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    names = re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)

    assert set(_read_table("Variables of the compose file")) <= set(names)


def test_the_pages_commands_exist_in_the_compose_file() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

    named = re.findall(r"docker compose (?:exec|run|logs) (?:-\S+ )*([a-z][a-z-]*)", page)

    assert named
    assert set(named) <= set(services)


def _read_table(heading: str) -> dict[str, list[str]]:
    """The table below a heading: its first column, in backticks, to the other cells."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in rows}
