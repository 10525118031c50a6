"""An S3 server for tests: moto's, as a process of its own, reached as any other by the AWS environment variables."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cli.processes import Supervisor
from cli.serve import find_free_port

SECRET = "wJalrXUtnFEMI-secret-of-the-store"


@contextmanager
def serving_s3(folder: Path, *buckets: str) -> Iterator[str]:
    """Its URL. Meanwhile this process and its children have the credentials."""
    port = find_free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "medtune",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with Supervisor(folder / "logs") as supervisor, pytest.MonkeyPatch.context() as patch:
        supervisor.start("s3", [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)])
        supervisor.wait_until(lambda: _answers(url), "the S3 server", 60)
        for name, value in environment.items():
            patch.setenv(name, value)
        for bucket in buckets:
            httpx.put(f"{url}/{bucket}", trust_env=False).raise_for_status()
        yield url


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/moto-api/", timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False
