"""Alembic's entry: runs the migrations as the login user, one process at a time."""

from alembic import context
from sqlalchemy import func, select

from jobs.database import build_engine
from jobs.models import Base
from jobs.settings import get_settings

_ADVISORY_LOCK = 0x6D656474756E65  # "medtune"


def run_migrations() -> None:
    """Services that start together wait here for the first; roles are global to the server, so the lock covers them."""
    engine = context.config.attributes.get("engine") or build_engine(get_settings(), role=None)
    with engine.begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
        context.run_migrations()


run_migrations()
