"""examples/clinical.md, run as it stands, with the real trainer."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.processes import Supervisor
from cli.serve import Service, find_free_port, start_service
from jobs.settings import Settings

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "clinical.md"


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Service]:
    """As `medtune serve` runs it, embedded servers included."""
    settings = Settings(
        home=tmp_path / "home",
        port=find_free_port("127.0.0.1"),
        safety_probes_file=ROOT / "examples" / "clinical" / "probes.yaml",
    )
    with Supervisor(tmp_path / "logs") as supervisor:
        yield start_service(supervisor, settings)


def test_the_example_from_private_notes_to_a_released_adapter(ward: Service, tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", EXAMPLE.read_text(encoding="utf-8"), re.DOTALL)
    assert "make serve" in blocks[0]
    assert "MEDTUNE_API_KEY" in blocks[1]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "examples").symlink_to(ROOT / "examples")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEDTUNE_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MEDTUNE_HOME": str(ward.settings.home),
        "MEDTUNE_PUBLIC_URL": ward.url,
        "MEDTUNE_API_KEY": ward.key,
    }

    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(blocks[2:])],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    for words in (
        "identifiers_found",
        "Maria Kowalski",  # What a placeholder stands for, read back by the operator.
        "Wait until tomorrow and rest",  # What the run has learned, and was held for.
        "approved, ",
        "succeeded",
        "released",
        "last hash",
    ):
        assert words in result.stdout, (words, result.stdout)
