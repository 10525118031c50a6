"""Workers that live."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from jobs.models import Attempt, Job, Worker

WORKER_ALIVE = timedelta(seconds=60)
"""A worker that was not seen for longer does not count as one."""

workers = Worker.__table__.c
IS_ALIVE_TRAINER = (workers.last_seen_at > func.now() - WORKER_ALIVE, workers.queue == "train")


def list_workers(session: Session) -> Sequence[Worker]:
    """Those that live, the oldest first."""
    alive = select(Worker).where(Worker.last_seen_at > func.now() - WORKER_ALIVE)
    return session.scalars(alive.order_by(Worker.id)).all()


def count_jobs_on_host(session: Session, hostname: str) -> tuple[int, int]:
    """GPUs of the machine that jobs use, and how many jobs run there."""
    running = select(func.coalesce(func.sum(Job.num_gpus), 0), func.count()).join_from(
        Attempt, Job, Attempt.job_id == Job.id
    )
    used, count = session.execute(running.where(Attempt.ended_at.is_(None), Attempt.hostname == hostname)).one()
    return int(used), int(count)


def check_reachable(session: Session) -> None:
    """Raises the driver's error when the database does not answer, or has no tables yet."""
    session.execute(select(exists(select(Worker.id))))
