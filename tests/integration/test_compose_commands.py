"""The compose file's own commands as processes, with Debian's PostgreSQL and Redis in place of the containers'.

Secrets come from files, each part sees its own ones and its own folders only, and the database login is no superuser.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from cli.embedded import start_postgres
from cli.processes import Supervisor
from cli.serve import find_free_port
from jobs.database import Role, build_engine, build_sessions, tenant_transaction
from jobs.processes import die_with_parent
from jobs.schema import migrate
from jobs.settings import Settings
from jobs.status import FINAL
from tests.factories import is_alive, wait_for_status, wait_until, write_rows
from tests.plain_client import ApiError, Client
from tests.rules.test_containers import COMPOSE, OURS, SERVICES, get_source, make_secrets

_NOBODY = 65534
_MEDTUNE = Path(sys.executable).with_name("medtune")
_ROWS = [{"instruction": f"What is {n} plus {n}?", "response": f"It is {n + n}."} for n in range(8)]
_TRAINING = {
    "max_steps": 3,
    "max_seq_len": 64,
    "global_batch_size": 2,
    "lora": {"r": 4, "alpha": 8},
    "eval_every_steps": 3,
    "save_every_steps": 3,
}


@dataclass
class Deployment:
    """What stands in for the Docker engine: the compose file's parts as processes, their folders below one."""

    root: Path
    postgres_port: int
    redis_port: int
    api_port: int = field(default_factory=lambda: find_free_port("127.0.0.1"))
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def models(self) -> Path:
        return self.root / "models"

    def read_secret(self, name: str) -> str:
        return (self.root / "secrets" / name).read_text(encoding="ascii").strip()

    def prepare(self, name: str) -> tuple[dict[str, str], Path]:
        """A part's environment, and a folder with its secrets alone."""
        service = SERVICES[name]
        secrets = self.root / "mounted" / name
        secrets.mkdir(parents=True, exist_ok=True)
        for secret in service["secrets"]:
            value = self.read_secret(secret)
            value = value.replace("@postgres:5432", f"@127.0.0.1:{self.postgres_port}")
            value = value.replace("@redis:6379", f"@127.0.0.1:{self.redis_port}")
            if not (secrets / secret).exists():  # Health checks come here too, while the part reads them.
                (secrets / secret).write_text(value + "\n", encoding="ascii")
        settings = {variable: self._locate(name, value) for variable, value in service["environment"].items()}
        if name == "api":
            settings |= {"MEDTUNE_HOST": "127.0.0.1", "MEDTUNE_PORT": str(self.api_port)}
        if name == "worker":
            settings["MEDTUNE_WORKER_GPUS"] = "0"
        environment = {variable: os.environ[variable] for variable in ("PATH", "HOME") if variable in os.environ}
        return {**environment, **settings, "MEDTUNE_SECRETS_DIR": str(secrets), "PYTHONUNBUFFERED": "1"}, secrets

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """A part of the compose file, in its own session."""
        environment, _ = self.prepare(name)
        command = [str(_MEDTUNE), *SERVICES[name]["command"]]
        with (self.root / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                die_with_parent(command),
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def run(self, name: str, *words: str) -> str:
        """Another command beside a part, as `docker compose exec` would run it."""
        environment, _ = self.prepare(name)
        result = subprocess.run(
            [str(_MEDTUNE), *words], env=environment, cwd=self.root, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def check_health(self, name: str) -> bool:
        """Run a part's own health check."""
        environment, _ = self.prepare(name)
        kind, python, *words = SERVICES[name]["healthcheck"]["test"]
        assert (kind, python) == ("CMD", "python")
        return (
            subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=False).returncode == 0
        )

    def read_log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def _locate(self, name: str, value: str) -> str:
        """A container's path as one below the root; a variable as its default."""
        value = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
        mounts = dict(mount.removesuffix(":ro").rsplit(":", 1)[::-1] for mount in SERVICES[name].get("volumes", []))
        if value in mounts:
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mounts[value]).removeprefix("./")
            folder = self.root / source
            folder.mkdir(exist_ok=True)
            return str(folder)
        # What has no volume is on the read-only root.
        return str(self.root / "nothing" / value.removeprefix("/")) if value.startswith("/") else value


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Servers as the compose file configures them, its secrets as docs/operations.md makes them, nothing started."""
    root = tmp_path_factory.mktemp("compose")
    make_secrets(root)
    with Supervisor(root / "logs") as supervisor, tempfile.TemporaryDirectory(prefix="medtune-postgres-") as folder:
        postgres_port = start_debian_postgres(supervisor, Path(folder), root / "secrets")
        redis_port = start_debian_redis(supervisor, root)
        deployment = Deployment(root, postgres_port, redis_port)
        try:
            yield deployment
        finally:
            for process in deployment.processes.values():
                process.kill()
                process.wait()
            supervisor.stop()


@pytest.fixture(scope="module")
def running(deployment: Deployment) -> Deployment:
    """All parts started in the compose file's order."""
    command = [sys.executable, "-m", "trainer_core", "demo-model", str(deployment.models / "tiny-llama")]
    deployment.models.mkdir()
    subprocess.run(command, check=True, capture_output=True)
    waiting = list(OURS)
    while waiting:
        name = next(n for n in waiting if set(SERVICES[n]["depends_on"]).isdisjoint(waiting))
        waiting.remove(name)
        process = deployment.start(name)
        if SERVICES[name]["restart"] == "no":
            assert process.wait(60) == 0, deployment.read_log(name)
    return deployment


@pytest.fixture
def admin(running: Deployment) -> Iterator[Client]:
    client = Client(running.url, running.read_secret("medtune_bootstrap_key"))
    yield client
    client.close()


def test_the_login_is_no_superuser_and_owns_its_database(deployment: Deployment) -> None:
    with connect(deployment) as connection:
        row = connection.execute(
            "SELECT rolsuper, rolcreaterole, rolbypassrls, datdba = r.oid FROM pg_roles r, pg_database "
            "WHERE rolname = current_user AND datname = current_database()"
        ).fetchone()

    assert row == (False, True, False, True)


def test_redis_wants_the_password_and_passes_its_health_check(deployment: Deployment) -> None:
    _, script = SERVICES["redis"]["healthcheck"]["test"]

    answer = subprocess.run(["redis-cli", "-p", str(deployment.redis_port), "ping"], capture_output=True, text=True)

    assert "NOAUTH" in answer.stdout
    assert subprocess.run(["sh", "-c", script.replace("6379", str(deployment.redis_port))]).returncode == 0
    unused = str(find_free_port("127.0.0.1"))
    assert subprocess.run(["sh", "-c", script.replace("6379", unused)], capture_output=True).returncode != 0


def test_a_part_becomes_healthy_by_its_own_health_check(running: Deployment) -> None:
    for name in ("api", "worker", "check-worker"):
        wait_until(lambda name=name: running.check_health(name), seconds=60)  # type: ignore[misc]


def test_a_job_runs_to_its_adapter_and_other_tenants_see_none_of_it(
    running: Deployment, admin: Client, tmp_path: Path
) -> None:
    wait_until(lambda: running.check_health("api"), seconds=60)
    dataset = admin.upload(write_rows(tmp_path / "rows.jsonl", _ROWS))
    checked = wait_until(
        lambda: admin.get(f"/datasets/{dataset['id']}"), lambda d: d["status"] != "validating", seconds=60
    )
    assert checked["status"] == "ready", running.read_log("check-worker")

    request: dict[str, Any] = {
        "model": "tiny-llama",
        "dataset": {"id": dataset["id"]},
        "training": _TRAINING,
        "safety": None,
    }
    job_id = admin.post("/jobs", request)["id"]
    job = wait_for_status(admin, job_id, *FINAL, seconds=240)

    assert job["status"] == "succeeded", job["reason"]
    assert job["progress"]["step"] == 3
    assert job["verification"]["ok"] is True
    archive = tmp_path / "adapter.tar.gz"
    admin.download_adapter(job_id, archive)
    with tarfile.open(archive) as tar:
        assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(tar.getnames())

    shown = running.run("api", "keys", "create", "visitor", "--tenant", "elsewhere")
    visitor = Client(running.url, shown.split()[-1])
    assert visitor.get("/jobs")["data"] == visitor.get("/datasets")["data"] == []
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/logs", f"/jobs/{job_id}/adapter", f"/datasets/{dataset['id']}"):
        assert visitor.http.get(path).status_code == 404, path
    with pytest.raises(ApiError, match="dataset"):
        visitor.post("/jobs", request)
    visitor.close()


def test_parts_write_to_their_volumes_only(running: Deployment) -> None:
    wait_until(lambda: running.check_health("api"), seconds=60)

    assert not (running.root / "nothing").exists()
    assert {path.name for path in running.root.iterdir() if path.is_dir()} <= {
        *COMPOSE["volumes"], "logs", "models", "mounted", "secrets"
    }  # fmt: skip


def test_no_part_shows_a_secret_in_its_arguments_or_environment(running: Deployment) -> None:
    passwords = [running.read_secret(name) for name in ("medtune_secret_key", "medtune_bootstrap_key")]
    passwords += [
        running.read_secret(name).split(":")[2].split("@")[0] for name in ("medtune_database_url", "medtune_redis_url")
    ]
    shown = []
    for name, process in running.processes.items():
        if name != "migrate":
            member = psutil.Process(process.pid)
            shown += [*member.cmdline(), *member.environ().values()]

    assert shown
    assert [value for value in shown if any(password in value for password in passwords)] == []


def test_a_second_migration_changes_nothing(running: Deployment) -> None:
    with connect(running) as connection:
        before = connection.execute("SELECT * FROM alembic_version").fetchall()
        running.run("migrate", *SERVICES["migrate"]["command"])
        assert connection.execute("SELECT * FROM alembic_version").fetchall() == before


def test_sigterm_ends_every_part_in_order_and_leaves_no_process(running: Deployment) -> None:
    """Last in this module: it stops what the others use."""
    parts = {name: process for name, process in running.processes.items() if name != "migrate"}
    wait_until(lambda: all(running.check_health(name) for name in ("api", "worker", "check-worker")), seconds=60)
    family = [member for process in parts.values() for member in list_family(process.pid)]

    for process in parts.values():
        process.send_signal(signal.SIGTERM)
    codes = {name: process.wait(60) for name, process in parts.items()}

    # uvicorn ends itself by the signal that it got, after its orderly stop.
    assert codes == {"api": -signal.SIGTERM, "worker": 0, "check-worker": 0, "reconciler": 0}
    wait_until(lambda: [member for member in family if is_alive(member)], lambda left: not left, seconds=10)
    for name in parts:
        assert "Traceback" not in running.read_log(name), running.read_log(name)
    with connect(running) as connection:
        assert connection.execute("SELECT count(*) FROM workers").fetchone() == (0,)


def test_a_newer_postgres_lets_a_login_without_superuser_migrate_and_lose_createrole(tmp_path: Path) -> None:
    """From PostgreSQL 16 on, CREATEROLE alone lets nobody take on a role; the embedded server is one of those."""
    with Supervisor(tmp_path / "logs") as supervisor:
        owner_url = start_postgres(supervisor, tmp_path / "postgres")
        with psycopg.connect(owner_url, autocommit=True) as connection:
            assert connection.info.server_version >= 160000
            connection.execute("CREATE ROLE medtune LOGIN NOSUPERUSER CREATEROLE PASSWORD 'password'")
            connection.execute("CREATE DATABASE medtune OWNER medtune")
            port = connection.info.port
        settings = Settings(database_url=f"postgresql://medtune:password@127.0.0.1:{port}/medtune")
        engine = build_engine(settings, role=None)
        migrate(engine)
        with psycopg.connect(owner_url, autocommit=True) as connection:
            connection.execute("ALTER ROLE medtune NOCREATEROLE")
        migrate(engine)
        engine.dispose()
        for role in Role:
            role_engine = build_engine(settings, role)
            with tenant_transaction(build_sessions(role_engine), "somebody") as session:
                assert session.connection().exec_driver_sql("SELECT current_user").scalar() == role
                assert session.connection().exec_driver_sql("SELECT count(*) FROM jobs").scalar() == 0
            role_engine.dispose()


# --- Steps of the above -----------------------------------------------------------------------------------------------


def start_debian_postgres(supervisor: Supervisor, folder: Path, secrets: Path) -> int:
    """A cluster of its own with the compose file's options, and the login that its first start makes. Its port."""
    binaries = find_postgres_binaries()
    data, port = folder / "data", find_free_port("127.0.0.1")
    folder.chmod(0o711)
    data.mkdir()
    if os.geteuid() == 0:
        os.chown(data, _NOBODY, _NOBODY)
    options = [
        word for word in SERVICES["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split() if "peer" not in word
    ]
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--auth-local=trust", *options]
    subprocess.run(as_nobody([*initdb, "--no-instructions"]), check=True, capture_output=True)
    command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(data), "-h", "127.0.0.1"]
    supervisor.start("postgres", as_nobody(command), stop_signal=signal.SIGINT, grace_seconds=20, is_server=True)
    _, check, *words = SERVICES["postgres"]["healthcheck"]["test"]
    ready = [str(binaries / check), *words, f"--port={port}"]
    supervisor.wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL", 60)
    (script,) = [
        secrets / secret["source"]
        for secret in SERVICES["postgres"]["secrets"]
        if isinstance(secret, dict) and secret["target"].startswith("/docker-entrypoint-initdb.d/")
    ]
    psql = [str(binaries / "psql"), "-h", str(data), "-p", str(port), "-U", "postgres", "--no-psqlrc"]
    subprocess.run([*psql, "-v", "ON_ERROR_STOP=1", "-q", "-f", str(script)], check=True, capture_output=True)
    return port


def start_debian_redis(supervisor: Supervisor, root: Path) -> int:
    """With the compose file's own arguments. Its port."""
    program, config, *options = SERVICES["redis"]["command"]
    binary = shutil.which(program)
    if binary is None:
        pytest.fail("redis-server is missing: apt-get install redis-server", pytrace=False)
    port = find_free_port("127.0.0.1")
    secret = root / "secrets" / Path(config).name
    assert secret.name in map(get_source, SERVICES["redis"]["secrets"])
    extra = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(root / "logs")]
    supervisor.start("redis", [binary, str(secret), *options, *extra], is_server=True)
    ping = ["sh", "-c", SERVICES["redis"]["healthcheck"]["test"][1].replace("6379", str(port))]
    supervisor.wait_until(lambda: subprocess.run(ping, capture_output=True, check=False).returncode == 0, "Redis", 30)
    return port


def find_postgres_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if not found:
        pytest.fail("PostgreSQL's server is missing: apt-get install postgresql", pytrace=False)
    return found[-1].parent


def as_nobody(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return command
    user = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--pdeathsig=INT"]
    return ["setpriv", *user, "--", *command]


def connect(deployment: Deployment) -> psycopg.Connection:
    """As the service's login."""
    _, secrets = deployment.prepare("migrate")
    url = (secrets / "medtune_database_url").read_text(encoding="ascii").strip()
    return psycopg.connect(url, autocommit=True)


def list_family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
