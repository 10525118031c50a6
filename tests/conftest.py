"""Fixtures: real Postgres and Redis for the session, a fresh database per test, a whole service with a fake trainer."""

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from cli.embedded import start_postgres, start_redis
from cli.processes import Supervisor
from cli.serve import Service, find_free_port, start_service
from jobs.api_keys import create_key
from jobs.database import Role, Sessions, build_engine, build_sessions
from jobs.schema import migrate
from jobs.settings import Settings
from tests.factories import create_model_folder
from tests.plain_client import Client

FAKE_TRAINER = [sys.executable, str(Path(__file__).parent / "fake_trainer.py")]

FAST: dict[str, Any] = {
    "heartbeat_seconds": 0.5,
    "lease_seconds": 5,
    "flush_seconds": 0.1,
    "stop_grace_seconds": 1,
    "save_grace_seconds": 5,
    "backoff_seconds": 0.2,
    "rest_seconds": 1,
    "reconcile_seconds": 0.5,
    "log_level": "INFO",
}
"""Clocks of a service in tests."""


@dataclass(frozen=True)
class Servers:
    postgres_url: str
    redis_url: str
    template: str
    """A migrated database to copy."""


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    home = tmp_path_factory.mktemp("servers")
    with Supervisor(home / "logs") as supervisor:
        postgres_url = start_postgres(supervisor, home / "postgres")
        redis_url = start_redis(supervisor, home / "redis")
        template = create_database(postgres_url, "postgres")
        engine = build_engine(Settings(database_url=template), role=None)
        migrate(engine)
        engine.dispose()
        yield Servers(postgres_url, redis_url, make_url(template).database or "")


def create_database(server_url: str, template: str) -> str:
    """A new database's URL."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE {name} TEMPLATE "{template}"')
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def settings(servers: Servers, tmp_path: Path) -> Settings:
    """A home, a migrated database of its own, a model that nobody trains."""
    create_model_folder(tmp_path / "models" / "tiny")
    return Settings(
        home=tmp_path,
        database_url=create_database(servers.postgres_url, servers.template),
        redis_url=servers.redis_url,
    )


@pytest.fixture
def open_sessions(settings: Settings) -> Iterator[Callable[[Role | None], Sessions]]:
    """Sessions under a role; their connections end with the test."""
    engines = []

    def open_(role: Role | None) -> Sessions:
        engines.append(build_engine(settings, role))
        return build_sessions(engines[-1])

    yield open_
    for engine in engines:
        engine.dispose()


@pytest.fixture(scope="session")
def service(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """API, workers and reconciler as processes, with the fake trainer; tests share it and make their own rows."""
    yield from run_service(servers, tmp_path_factory.mktemp("service"))


def run_service(servers: Servers, home: Path, **changes: Any) -> Iterator[Service]:
    """`changes`: settings."""
    create_model_folder(home / "models" / "tiny")
    create_model_folder(home / "models" / "tiny-llama")  # What the README and docs/cli.md call the model.
    settings = Settings(
        home=home,
        port=find_free_port("127.0.0.1"),
        database_url=create_database(servers.postgres_url, servers.template),
        redis_url=servers.redis_url + secrets.choice("123456789"),
        trainer_command=FAKE_TRAINER,
        max_upload_bytes=3 << 20,
        allowed_hosts=["medtune.test", "gpu-host.test"],
        webhook_allowed_networks=["127.0.0.1/32"],
        webhook_allow_http=True,
        **FAST | changes,
    )
    with Supervisor(home / "logs") as supervisor:
        yield start_service(supervisor, settings)


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    connection = Client(service.url, service.key)
    yield connection
    connection.close()


@pytest.fixture
def colleague(service: Service) -> Iterator[Client]:
    """Of the same tenant, with a key of her own."""
    engine = build_engine(service.settings, Role.API, pool_size=1)
    with build_sessions(engine).begin() as session:
        _, value = create_key(session, service.settings.load_secret_key(), name="colleague")
    engine.dispose()
    connection = Client(service.url, value)
    yield connection
    connection.close()


@pytest.fixture
def other_tenant(service: Service) -> Iterator[Client]:
    """A client of another tenant."""
    engine = build_engine(service.settings, Role.API, pool_size=1)
    with build_sessions(engine).begin() as session:
        secret_key = service.settings.load_secret_key()
        _, value = create_key(session, secret_key, name="other", tenant_id=f"other-{secrets.token_hex(4)}")
    engine.dispose()
    connection = Client(service.url, value)
    yield connection
    connection.close()


@pytest.fixture(autouse=True)
def no_foreign_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell has set must not change a test."""
    for name in list(os.environ):
        if name.startswith("MEDTUNE_"):
            monkeypatch.delenv(name)
