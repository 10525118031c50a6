"""docs/cli.md, run as it stands."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.serve import Service
from tests.factories import submit_script, wait_for_status
from tests.plain_client import Client

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
SECONDS = 300
"""Some twenty commands, each a process of its own, on a busy machine."""


@pytest.fixture
def environment(service: Service, tmp_path: Path) -> dict[str, str]:
    """A folder with the examples, and `medtune` on the path."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MEDTUNE_PUBLIC_URL": service.url,
        "MEDTUNE_API_KEY": service.key,
    }


def run(environment: dict[str, str], folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_commands_of_the_page_work(client: Client, environment: dict[str, str], tmp_path: Path) -> None:
    way, wishes, tables, webhooks = read_blocks("sh")
    webhooks = webhooks.replace("https://ops.example/medtune", "http://127.0.0.1:9/hook")

    out = run_shell(environment, tmp_path, way + "echo $job > job.txt")
    with busy_worker(client, tmp_path):  # A job that waits can be paused; one of the fake trainer's is over soon.
        out += run_shell(environment, tmp_path, "job=$(cat job.txt)\n" + wishes)
    out += run_shell(environment, tmp_path, tables + webhooks)

    for words in ("step 1/", "succeeded", "cancelled", "whsec_", "webhook.test", "removed", '"object": "list"'):
        assert words in out, words
    assert (tmp_path / "adapter.tar.gz").stat().st_size > 0


def test_the_program_of_the_page_works(environment: dict[str, str], tmp_path: Path) -> None:
    (program,) = read_blocks("python")

    out = run(environment, tmp_path, sys.executable, "-c", program)

    assert "step 1/" in out
    assert out.splitlines()[-1].startswith("409 job_is_")
    assert (tmp_path / "from-python.tar.gz").stat().st_size > 0


def test_every_client_command_is_on_the_page() -> None:
    source = (ROOT / "cli" / "main.py").read_text(encoding="utf-8")
    remote = re.findall(r'fromkeys\(\(([^)]*)\), "cli\.remote"\)', source)
    commands = {name for names in remote for name in re.findall(r'"(\w+)"', names)}

    assert commands
    assert {command for command in commands if f"medtune {command}" not in PAGE} == set()


def run_shell(environment: dict[str, str], folder: Path, script: str) -> str:
    return run(environment, folder, "bash", "-euo", "pipefail", "-c", script)


@contextmanager
def busy_worker(client: Client, folder: Path) -> Iterator[None]:
    job_id = submit_script(client, folder, steps=100_000, step_seconds=0.05)
    wait_for_status(client, job_id, "running", seconds=SECONDS)
    try:
        yield
    finally:
        client.post(f"/jobs/{job_id}/cancel")
        wait_for_status(client, job_id, "cancelled", seconds=SECONDS)
