"""The whole service as processes of one supervisor: servers (embedded unless configured), API, workers, reconciler."""

import fcntl
import json
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import SecretStr

from cli.embedded import start_postgres, start_redis
from cli.processes import StartFailed, Supervisor
from jobs.secret_files import load_or_create_secret
from jobs.settings import Settings
from jobs.task_queue import Queue

MEDTUNE = [sys.executable, "-m", "cli.main"]
_READY_SECONDS = 60


@dataclass(frozen=True)
class Service:
    """A running service, and how to reach it."""

    url: str
    key: str
    settings: Settings


def start_service(supervisor: Supervisor, settings: Settings) -> Service:
    """Start everything and wait until it answers. Raises StartFailed."""
    _check_port(settings)
    settings = _start_servers(supervisor, settings)
    environment = build_environment(settings)
    supervisor.run("migrate", [*MEDTUNE, "migrate"], environment=environment)
    _build_demo_model(supervisor, settings)
    worker_grace = settings.save_grace_seconds + 60
    supervisor.start("api", [*MEDTUNE, "api"], environment=environment)
    for queue in Queue:
        command = [*MEDTUNE, "worker", "--queue", queue]
        name = f"worker-{queue}"
        supervisor.start(name, command, environment=environment, grace_seconds=worker_grace, restarts=True)
    supervisor.start("reconciler", [*MEDTUNE, "reconciler"], environment=environment, restarts=True)
    url = f"http://{settings.host}:{settings.port}"
    supervisor.wait_until(lambda: _answers(f"{url}/readyz"), "the API", _READY_SECONDS)
    assert settings.bootstrap_key is not None
    return Service(url, settings.bootstrap_key.get_secret_value(), settings)


@contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """One service per home. The lock ends with the process, however that ends."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartFailed(f"a service runs in {home} already; stop it, or set MEDTUNE_HOME to another") from None
        yield


def find_free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _check_port(settings: Settings) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise StartFailed(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
                "set MEDTUNE_PORT (or `make serve PORT=...`) to another"
            ) from None


def _start_servers(supervisor: Supervisor, settings: Settings) -> Settings:
    """Run what is not configured, and make the key that people sign in with."""
    found = {}
    if settings.database_url is None:
        found["database_url"] = start_postgres(supervisor, settings.home / "postgres")
    if settings.redis_url is None:
        found["redis_url"] = start_redis(supervisor, settings.home / "redis")
    if settings.bootstrap_key is None:
        found["bootstrap_key"] = load_or_create_secret(
            settings.home / "api_key", lambda: f"mt_{secrets.token_urlsafe(32)}"
        )
    return settings.model_copy(update={name: SecretStr(value) for name, value in found.items()})


def _build_demo_model(supervisor: Supervisor, settings: Settings) -> None:
    """On an empty models folder, so that a first job needs no download."""
    assert settings.models_dir is not None
    if settings.models_dir.is_dir() and any(settings.models_dir.iterdir()):
        return
    folder = settings.models_dir / "tiny-llama"
    supervisor.run("demo-model", [sys.executable, "-m", "trainer_core", "demo-model", str(folder)])


def build_environment(settings: Settings) -> dict[str, str]:
    """For the service's own processes only; a trainer gets an allowlist instead."""
    values = settings.model_dump(mode="json", exclude_none=True, context={"reveal_secrets": True})
    return {
        f"MEDTUNE_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False
