"""The official `openai` package of three major versions, unmodified, against a real service."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tests.openai_clients
from cli.serve import Service
from tests.openai_clients.versions import PINS, install_client

DRIVER = Path(tests.openai_clients.__file__).parent / "drive.py"


@pytest.mark.parametrize("major", PINS)
def test_the_official_client_drives_a_job_from_its_rows_to_its_adapter(service: Service, major: str) -> None:
    folder = install_client(major)
    version = PINS[major][0].removeprefix("openai==")
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    environment = {name: value for name, value in os.environ.items() if name.lower() not in proxies}

    driven = subprocess.run(
        [sys.executable, str(DRIVER), version, service.url, service.key],
        env=environment | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert driven.returncode == 0, driven.stderr
