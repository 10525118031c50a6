"""An API process that may be killed and started again, with jobs that no worker runs."""

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from cli.serve import MEDTUNE, build_environment, find_free_port
from jobs import lifecycle
from jobs.api_keys import create_key
from jobs.database import Role, Sessions, build_engine, build_sessions
from jobs.ids import new_id
from jobs.lifecycle import Ending, Lease, News
from jobs.repository import Identity
from jobs.settings import Settings
from tests.conftest import Servers, create_database
from tests.factories import create_model_folder, wait_until
from tests.integration.rows import BROKEN, add_dataset, claim, submit

STARTS_SECONDS = 120
"""A busy machine may take long to start a process."""


@dataclass
class Api:
    """A process of the API that can be killed and started again, with jobs that no worker runs."""

    settings: Settings
    sessions: Sessions
    worker: Sessions
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def start(self) -> None:
        environment = {"PATH": "/usr/bin:/bin", **build_environment(self.settings)}
        self.process = subprocess.Popen([*MEDTUNE, "api"], env=environment)
        wait_until(self._answers, seconds=STARTS_SECONDS)

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STARTS_SECONDS)

    def create_key(self, tenant_id: str = "a") -> tuple[Identity, str]:
        with self.sessions.begin() as session:
            key, value = create_key(session, self.settings.load_secret_key(), name="test", tenant_id=tenant_id)
            return Identity(key.id, tenant_id, is_admin=False), value

    def start_job(self, identity: Identity) -> Lease:
        submit(self.sessions, identity, self.settings, add_dataset(self.sessions, identity))
        return claim(self.worker, seconds=3600)[1]

    def write(self, lease: Lease, number: int) -> None:
        """One event, one metric and one line with this number, which counts from 1."""
        event = {"id": new_id("evt"), "type": "notice", "message": f"event {number}", "data": {}}
        metric = {"seq": number, "step": number, "epoch": 0.0, "tokens": 0, "values": {"loss": 1.0}}
        chunk = {"seq": number, "num_lines": 1, "text": f"line {number}\n"}
        with self.worker.begin() as session:
            news = News(events=[event], metrics=[metric], log_chunks=[chunk])
            lifecycle.store_news(session, lease, news)

    def start_training(self, lease: Lease, **progress: Any) -> None:
        """As at a step; `progress`: step, max_steps, eta_seconds."""
        told = {"epoch": 0.5, "tokens": 1000, "percent": 35.0, "phase": "training", **progress}
        with self.worker.begin() as session:
            lifecycle.store_news(session, lease, News(progress=told, latest_metrics={"loss": 1.0}))

    def finish(self, lease: Lease) -> None:
        with self.worker.begin() as session:
            lifecycle.fail(session, lease, Ending(BROKEN))

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False


def run_api(servers: Servers, home: Path, **changes: Any) -> Iterator[Api]:
    """`changes`: settings."""
    create_model_folder(home / "models" / "tiny")
    settings = Settings(
        home=home,
        port=find_free_port("127.0.0.1"),
        database_url=SecretStr(create_database(servers.postgres_url, servers.template)),
        redis_url=SecretStr(servers.redis_url),
        log_level="WARNING",
        **changes,
    )
    engines = [build_engine(settings, role) for role in Role]
    by_role = dict(zip(Role, map(build_sessions, engines), strict=True))
    api = Api(settings, by_role[Role.API], by_role[Role.WORKER])
    api.start()
    yield api
    api.end(signal.SIGKILL)
    for engine in engines:
        engine.dispose()
