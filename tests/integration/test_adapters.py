"""An adapter that a worker made, downloaded and verified by the command line."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cli.serve import Service
from tests.factories import submit_script, upload_script, wait_for_status
from tests.plain_client import Client


@pytest.fixture
def adapter(client: Client, tmp_path: Path) -> Path:
    """Of a job with a validation dataset, unpacked."""
    request = {"validation": {"id": upload_script(client, tmp_path)}}
    job_id = submit_script(client, tmp_path, request, steps=5)
    job = wait_for_status(client, job_id, "succeeded", "failed")
    assert job["status"] == "succeeded", job["reason"]
    client.download_adapter(job_id, tmp_path / "adapter.tar.gz")
    with tarfile.open(tmp_path / "adapter.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "adapter"


def verify(*arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", "verify", *map(str, arguments)]
    environment = {**os.environ, "MEDTUNE_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_an_adapter_of_a_job_checks_out_anywhere(
    adapter: Path, client: Client, service: Service, tmp_path: Path
) -> None:
    public_key, base = service.settings.home / "signing-key.pub", service.settings.home / "models" / "tiny"

    elsewhere = verify(adapter, "--public-key", public_key, "--base", base, "--json", home=tmp_path / "elsewhere")
    assert elsewhere.returncode == 0, elsewhere.stdout + elsewhere.stderr
    assert json.loads(elsewhere.stdout)["result"] == "passed"
    assert verify(adapter, home=service.settings.home).returncode == 0
    assert verify(adapter, home=tmp_path / "elsewhere").returncode == 2

    card = (adapter / "README.md").read_text()
    for dataset in client.get("/datasets")["data"][:2]:
        assert dataset["sha256"] in card
    assert "| 5 | 0.6000 |  |" in card

    with (adapter / "adapter_model.safetensors").open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\0")
    assert verify(adapter, "--public-key", public_key, home=tmp_path / "elsewhere").returncode == 1


def test_an_adapter_tells_nothing_of_the_machine_that_made_it(adapter: Path, service: Service) -> None:
    for path in adapter.iterdir():
        assert str(service.settings.home).encode() not in path.read_bytes(), path.name


def test_a_worker_does_not_start_with_a_key_that_others_can_read(service: Service, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes((service.settings.home / "signing-key.pem").read_bytes())
    key.chmod(0o644)
    urls = service.settings.database_url, service.settings.redis_url
    assert all(urls)
    database_url, redis_url = (url.get_secret_value() for url in urls if url)
    settings = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SIGNING_KEY_FILE": str(key)}
    environment = {**os.environ, **{f"MEDTUNE_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "cli.main", "worker"]

    result = subprocess.run(
        command,
        env={**environment, "MEDTUNE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert result.returncode == 1
    assert "mode 0644" in result.stderr
    assert len(result.stderr.splitlines()) == 1
