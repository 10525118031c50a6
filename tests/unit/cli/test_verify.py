"""`medtune verify` tells by its exit code whether an adapter checks out, does not, or cannot be told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import build_app
from jobs.settings import get_settings
from tests.adapters import create_adapter, create_keys
from tests.factories import create_model_folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    private, _ = create_keys(folder)
    create_adapter(folder / "adapter", private)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation that never signed anything."""
    monkeypatch.setenv("MEDTUNE_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(build_app("verify"), ["verify", *map(str, arguments)])


def test_a_whole_adapter_checks_out(workshop: Path) -> None:
    result = verify(workshop / "adapter", "--public-key", workshop / "key.pub", "--base", workshop / "base")

    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == 6
    assert all(line.startswith("passed ") for line in result.output.splitlines())


def test_the_key_of_this_installation_is_taken_when_none_is_named(workshop: Path, home: Path) -> None:
    shutil.copy(workshop / "key.pub", home / "signing-key.pub")

    assert verify(workshop / "adapter").exit_code == 0


def test_without_a_key_it_cannot_be_told(workshop: Path) -> None:
    result = verify(workshop / "adapter")

    assert result.exit_code == 2
    assert "without one, a signature proves nothing" in result.output
    assert "--public-key" in result.output


def test_a_changed_adapter_does_not_check_out_even_without_a_key(workshop: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(workshop / "adapter", tmp_path / "adapter"))
    (adapter / "README.md").write_text("good for patients")

    result = verify(adapter)

    assert result.exit_code == 1
    assert "README.md has other content" in result.output


def test_another_base_does_not_check_out(workshop: Path, tmp_path: Path) -> None:
    other = create_model_folder(tmp_path / "other", num_hidden_layers=2)

    result = verify(workshop / "adapter", "--public-key", workshop / "key.pub", "--base", other)

    assert result.exit_code == 1
    assert "-> Load it on the base that its card names." in result.output


def test_a_program_reads_json(workshop: Path) -> None:
    result = verify(workshop / "adapter", "--public-key", workshop / "key.pub", "--json")

    report = json.loads(result.output)
    assert report["result"] == "passed"
    assert [check["name"] for check in report["checks"]] == [
        *("signature", "manifest", "gate", "documents", "verification"),
    ]


def test_what_is_no_folder_cannot_be_told(tmp_path: Path) -> None:
    assert verify(tmp_path / "none").exit_code == 2


def test_no_machine_learning_library_and_no_server_is_needed(workshop: Path) -> None:
    code = (
        "import sys\nsys.argv = ['medtune', 'verify', *sys.argv[1:]]\nfrom cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        "    print([m for m in ('torch', 'transformers', 'peft', 'numpy', 'psycopg') if m in sys.modules])"
    )
    arguments = [str(workshop / "adapter"), "--public-key", str(workshop / "key.pub")]

    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=Path.cwd(), check=False
    )

    assert result.stdout.splitlines()[-1] == "[]", result.stdout + result.stderr
