"""Postgres and Redis: the configured ones, or those that `medtune serve` runs in this home."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import redis
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from cli.doctor.finding import ERROR, OK, WARNING, Finding, describe, hide_url
from cli.doctor.sessions import connected
from cli.embedded import _DATABASE_USER
from jobs import repository
from jobs.database import Role
from jobs.schema import build_alembic_config
from jobs.settings import Settings
from jobs.task_queue import BROKER_ERRORS, Queue, build_celery, count_waiting_rings


def find_embedded_servers(settings: Settings) -> Settings:
    """With the URLs of the servers that `medtune serve` runs in this home now, where none are configured."""
    found = {}
    if settings.database_url is None and (url := _find_embedded_postgres(settings.home / "postgres")):
        found["database_url"] = SecretStr(url)
    if settings.redis_url is None and (url := _find_embedded_redis(settings.home / "redis")):
        found["redis_url"] = SecretStr(url)
    return settings.model_copy(update=found)


def check_database(settings: Settings) -> Iterator[Finding]:
    if settings.database_url is None:
        yield Finding("database", OK, "embedded, and not running now", "`medtune serve` starts it")
        return
    try:
        with connected(settings, None) as session:
            version = repository.get_server_version(session)
            revision = MigrationContext.configure(session.connection()).get_current_revision()
            head = ScriptDirectory.from_config(build_alembic_config(session.get_bind())).get_current_head()  # type: ignore[arg-type]
    except SQLAlchemyError as error:
        remedy = "start PostgreSQL, or correct MEDTUNE_DATABASE_URL"
        yield Finding("database", ERROR, f"does not answer: {describe(error)}", remedy)
        return
    yield Finding("database", OK, f"PostgreSQL {version}")
    if revision != head:
        yield Finding("migrations", ERROR, f"the schema is {revision or 'empty'}, not {head}", "run `medtune migrate`")
        return
    yield Finding("migrations", OK, f"at the newest, {head}")
    yield from _check_roles(settings)


def check_redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None:
        yield Finding("redis", OK, "embedded, and not running now", "`medtune serve` starts it")
        return
    try:
        with redis.Redis.from_url(
            settings.redis_url.get_secret_value(), socket_connect_timeout=3, socket_timeout=3
        ) as client:
            client.ping()
            policy = _read_policy(client)
            celery = build_celery(settings)
            lengths = ", ".join(f"{queue} {count_waiting_rings(celery, queue)}" for queue in Queue)
            celery.close()
    except (*BROKER_ERRORS, OSError, ValueError) as error:
        message = f"does not answer: {hide_url(str(error), settings)}"
        yield Finding("redis", ERROR, message, "start Redis, or correct MEDTUNE_REDIS_URL; jobs wait until then")
        return
    if policy == "noeviction":
        yield Finding("redis", OK, f"messages that wait: {lengths}")
    else:
        yield Finding("redis", WARNING, f"maxmemory-policy is {policy}", "set maxmemory-policy to noeviction")


def _check_roles(settings: Settings) -> Iterator[Finding]:
    for role in Role:
        try:
            with connected(settings, role) as session:
                repository.check_reachable(session)
        except SQLAlchemyError as error:
            remedy = f"as an administrator: GRANT {role} TO the login of MEDTUNE_DATABASE_URL WITH ADMIN OPTION"
            yield Finding("roles", ERROR, f"{role} cannot be used: {describe(error)}", f"{remedy}, then migrate")
            return
    yield Finding("roles", OK, ", ".join(Role))


def _read_policy(client: Any) -> str:
    try:
        return str(client.config_get("maxmemory-policy").get("maxmemory-policy", "unknown"))
    except redis.ResponseError:
        return "unknown, because CONFIG is not allowed"


def _find_embedded_postgres(folder: Path) -> str | None:
    try:
        pid, _, _, port, *_ = (folder / "data" / "postmaster.pid").read_text(encoding="ascii").splitlines()
        password = (folder / "password").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    if not psutil.pid_exists(int(pid)):
        return None
    url = URL.create("postgresql", _DATABASE_USER, password, "127.0.0.1", int(port), "postgres")
    return url.render_as_string(hide_password=False)


def _find_embedded_redis(folder: Path) -> str | None:
    """Its folder is its working directory; its port is nowhere else than in itself."""
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] != "redis-server" or Path(process.cwd()) != folder.resolve():
                continue
            ports = [c.laddr.port for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
            password = (folder / "password").read_text(encoding="ascii")
        except (psutil.Error, OSError):
            continue
        return f"redis://:{password}@127.0.0.1:{ports[0]}/0" if ports else None
    return None
