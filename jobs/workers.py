"""A worker's row: written by itself, so that others know that it lives."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.models import Worker
from jobs.task_queue import Queue
from trainer_core.planning.hardware import Hardware


@dataclass(frozen=True)
class WorkerDescription:
    """What a worker says of itself."""

    id: str
    queue: Queue
    hostname: str
    pid: int
    num_gpus: int
    hardware: Hardware
    problem: str | None = None
    """Why it takes no job now."""


def show_presence(session: Session, worker: WorkerDescription) -> None:
    hardware = worker.hardware.model_dump(exclude={"num_hosts"})
    row = insert(Worker).values(
        id=worker.id,
        queue=worker.queue,
        hostname=worker.hostname,
        pid=worker.pid,
        num_gpus=worker.num_gpus,
        problem=worker.problem,
        **hardware,
    )
    seen = {"last_seen_at": func.now(), "disk_free_bytes": row.excluded.disk_free_bytes, "problem": worker.problem}
    session.execute(row.on_conflict_do_update(index_elements=[Worker.id], set_=seen))


def forget_lost_workers(session: Session) -> None:
    """Rows of workers that ended without a word, a day ago or longer."""
    session.execute(delete(Worker).where(Worker.last_seen_at < func.now() - timedelta(days=1)))


def remove_presence(session: Session, worker_id: str) -> None:
    session.execute(delete(Worker).where(Worker.id == worker_id))
