"""Engines and transactions. Each part of the service works under a role of its own that is no superuser."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker

from jobs.settings import Settings

Sessions = sessionmaker[Session]


class Role(StrEnum):
    """Database roles, made by the migrations."""

    API = "medtune_api"
    """Sees the rows of the transaction's tenant only."""
    WORKER = "medtune_worker"
    """Sees every tenant's rows."""


class DatabaseNotConfigured(Exception):
    """There is no database URL."""


def get_database_url(settings: Settings) -> str:
    """Raises DatabaseNotConfigured."""
    if settings.database_url is None:
        raise DatabaseNotConfigured(
            "MEDTUNE_DATABASE_URL is not set; set it, or use `medtune serve`, which runs a database of its own"
        )
    return settings.database_url.get_secret_value()


def build_engine(settings: Settings, role: Role | None, *, pool_size: int = 5) -> Engine:
    """An engine whose every session starts under `role` (None: the login user itself, for migrations).

    The role is a start-up option of the connection and not a statement, so that no code path can miss it.
    """
    url = make_url(get_database_url(settings)).set(drivername="postgresql+psycopg")
    options = "-c timezone=UTC" + (f" -c role={role}" if role else "")
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=False,
        connect_args={"options": options, "connect_timeout": 5, "application_name": f"medtune-{role or 'owner'}"},
    )


def build_sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False, autoflush=False)


@contextmanager
def tenant_transaction(sessions: Sessions, tenant_id: str) -> Iterator[Session]:
    """A transaction in which row-level security shows this tenant's rows only."""
    with sessions.begin() as session:
        session.execute(select(func.set_config("medtune.tenant", tenant_id, True)))
        yield session
