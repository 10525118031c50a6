"""Short-lived sessions with the configured database, which may not be there."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from jobs import repository
from jobs.database import Role, build_engine, build_sessions
from jobs.settings import Settings

STATEMENT_SECONDS = 30.0


@contextmanager
def connected(settings: Settings, role: Role | None) -> Iterator[Session]:
    """Raises SQLAlchemyError."""
    engine = build_engine(settings, role, pool_size=1, statement_seconds=STATEMENT_SECONDS)
    try:
        with build_sessions(engine)() as session:
            yield session
    finally:
        engine.dispose()


@contextmanager
def reading(settings: Settings) -> Iterator[Session | None]:
    """None when there is no database to read, which has its own line."""
    if not _is_readable(settings):
        yield None
        return
    with connected(settings, Role.WORKER) as session:
        yield session


def _is_readable(settings: Settings) -> bool:
    if settings.database_url is None:
        return False
    try:
        with connected(settings, Role.WORKER) as session:
            repository.check_reachable(session)
    except SQLAlchemyError:
        return False
    return True
