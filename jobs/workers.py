"""A worker's row: written by itself, so that others know that it lives."""

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.models import Worker
from jobs.task_queue import Queue


def show_presence(session: Session, worker_id: str, queue: Queue, hostname: str, pid: int, num_gpus: int) -> None:
    row = insert(Worker).values(id=worker_id, queue=queue, hostname=hostname, pid=pid, num_gpus=num_gpus)
    session.execute(row.on_conflict_do_update(index_elements=[Worker.id], set_={"last_seen_at": func.now()}))


def remove_presence(session: Session, worker_id: str) -> None:
    session.execute(delete(Worker).where(Worker.id == worker_id))
