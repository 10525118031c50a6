"""Engines and transactions. Each part of the service works under a role of its own that is no superuser."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TypeVar

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from jobs.settings import Settings

logger = logging.getLogger(__name__)

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


def build_engine(settings: Settings, role: Role | None, *, pool_size: int = 5, statement_seconds: float = 0) -> Engine:
    """An engine whose every session starts under `role` (None: the login user itself, for migrations).

    The role is a start-up option of the connection and not a statement, so that no code path can miss it. A statement
    that takes longer than `statement_seconds` (0: any time) fails.
    """
    url = make_url(get_database_url(settings)).set(drivername="postgresql+psycopg")
    options = "-c timezone=UTC" + (f" -c role={role}" if role else "")
    options += f" -c statement_timeout={int(1000 * statement_seconds)}"
    # The server is to notice, too, that a client's machine is gone: until then its locks stay.
    options += " -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    if role == Role.WORKER:
        # One that stands still in a transaction lets go of its rows before its lease ends and others may take its job.
        options += f" -c idle_in_transaction_session_timeout={int(500 * settings.lease_seconds)}"
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        hide_parameters=True,  # Rows and keys stay out of errors and logs.
        connect_args={
            "options": options,
            "application_name": f"medtune-{role or 'owner'}",
            "connect_timeout": 5,
            # A network that is gone without a word is an error after this, long before a lease ends.
            "tcp_user_timeout": 20_000,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        },
    )


def build_sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False, autoflush=False)


LOST_DATABASE = (OperationalError, InterfaceError, InternalError)
"""What statements raise when the database does not answer or went away; the last also when it ended a session that was
idle in a transaction, and when it became a standby that takes no writes."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0
LAST_SECONDS = 5.0
"""A process that must stop tries for so long all the same."""

Result = TypeVar("Result")


def run_until_done(sessions: Sessions, work: Callable[[Session], Result], is_stopping: Callable[[], bool]) -> Result:
    """Run a transaction, again and again while the database is away; its error is raised when this process must stop.

    Even then it is tried for LAST_SECONDS: a server that was started anew has only broken the connections of the pool.
    """
    pause = _FIRST_PAUSE
    begun = time.monotonic()
    while True:
        try:
            with sessions.begin() as session:
                return work(session)
        except LOST_DATABASE as error:
            if is_stopping() and time.monotonic() - begun > LAST_SECONDS:
                raise
            logger.warning("the database does not answer, asked again in %s s: %s", pause, error)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


@contextmanager
def tenant_transaction(sessions: Sessions, tenant_id: str) -> Iterator[Session]:
    """A transaction in which row-level security shows this tenant's rows only."""
    with sessions.begin() as session:
        session.execute(select(func.set_config("medtune.tenant", tenant_id, True)))
        yield session
