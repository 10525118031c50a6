"""A worker does not start with a file of the site's that no run could use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

URLS = {"MEDTUNE_DATABASE_URL": "postgresql://a:b@127.0.0.1:1/c", "MEDTUNE_REDIS_URL": "redis://127.0.0.1:1/0"}


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("SAFETY_PROBES_FILE", 'version: "1"\nprobes:\n- {id: a, family: ward}\n', ["probes[0].family", "Give it id"]),
        ("SAFETY_RULES_FILE", 'version: "1"\ncrisis_countries: [gb]\nward: 1\n', ["ward"]),
        ("SAFETY_RULES_FILE", None, ["No such file"]),
    ],
)
def test_the_line_names_entry_field_and_remedy(
    tmp_path: Path, variable: str, text: str | None, words: list[str]
) -> None:
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)

    line = start(tmp_path, {variable: str(path)})

    assert "own.yaml" in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"URL": "guard:8000", "MODEL": "g"}, ["MEDTUNE_SAFETY_GUARD_URL", "http://guard:8000/v1"]),
        ({"URL": "http://ann:sesame@guard/v1", "MODEL": "g"}, ["MEDTUNE_SAFETY_GUARD_URL", "key file"]),
        ({"URL": "http://guard/v1"}, ["MEDTUNE_SAFETY_GUARD_MODEL"]),
        ({"MODEL": "g"}, ["MEDTUNE_SAFETY_GUARD_URL"]),
        ({"URL": "http://guard/v1", "MODEL": "g", "KEY_FILE": "/none"}, ["/none", "No such file"]),
        ({"URL": "http://guard/v1", "MODEL": "g", "ROUND_SECONDS": "3600"}, ["MEDTUNE_SAFETY_GUARD_ROUND_SECONDS"]),
    ],
)
def test_a_guard_that_cannot_be_asked_like_that_is_named(
    tmp_path: Path, settings: dict[str, str], words: list[str]
) -> None:
    line = start(tmp_path, {f"SAFETY_GUARD_{name}": value for name, value in settings.items()})

    assert all(word in line for word in words), line
    assert "sesame" not in line


def start(home: Path, settings: dict[str, str]) -> str:
    """The one line that a worker ends with."""
    own = {f"MEDTUNE_{name}": value for name, value in settings.items()}
    result = subprocess.run(
        [sys.executable, "-m", "cli.main", "worker"],
        env={**os.environ, **URLS, "MEDTUNE_HOME": str(home), **own},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr
