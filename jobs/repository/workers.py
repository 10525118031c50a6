"""Workers that live."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from jobs.models import Worker

WORKER_ALIVE = timedelta(seconds=60)
"""A worker that was not seen for longer does not count as one."""

workers = Worker.__table__.c
IS_ALIVE_TRAINER = (workers.last_seen_at > func.now() - WORKER_ALIVE, workers.queue == "train")


def list_workers(session: Session) -> Sequence[Worker]:
    """Those that live, the oldest first."""
    alive = select(Worker).where(Worker.last_seen_at > func.now() - WORKER_ALIVE)
    return session.scalars(alive.order_by(Worker.id)).all()


def check_reachable(session: Session) -> None:
    """Raises the driver's error when the database does not answer, or has no tables yet."""
    session.execute(select(exists(select(Worker.id))))
