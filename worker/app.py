"""The Celery application; `medtune worker` starts it with the right options.

The main process only keeps the worker's row fresh; work happens in the one pool process, which outlives its tasks.
"""

import logging
import multiprocessing
import os
import shutil
import socket
import threading
from typing import Any

from celery.signals import celeryd_after_setup, worker_process_init, worker_ready, worker_shutting_down
from sqlalchemy.exc import SQLAlchemyError

from jobs import workers
from jobs.database import Role, Sessions, build_engine, build_sessions
from jobs.ids import new_id
from jobs.processes import adopt_orphans
from jobs.settings import get_settings
from jobs.task_queue import Queue, build_celery
from jobs.workers import WorkerDescription
from worker.gpus import count_gpus, describe_hardware

logger = logging.getLogger(__name__)

SETTINGS = get_settings()
WORKER_ID = new_id("worker")
"""Shared by the main process and its pool process, which is forked."""

STOPPING = multiprocessing.Event()
"""Set when this worker must stop: the pool process gives its job back."""

app = build_celery(
    SETTINGS,
    imports=("worker.tasks",),
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_enable_remote_control=False,
    worker_hijack_root_logger=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)

SETTINGS.home.mkdir(parents=True, exist_ok=True, mode=0o700)
_num_gpus = count_gpus(SETTINGS)
_sessions: Sessions | None = None
_alive = threading.Event()


def get_sessions() -> Sessions:
    """This process's own sessions: connections must not be shared over a fork."""
    assert _sessions is not None
    return _sessions


def get_num_gpus() -> int:
    return _num_gpus


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: Any) -> None:
    logging.basicConfig(level=SETTINGS.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _begin_pool_process(**_: Any) -> None:
    global _sessions
    adopt_orphans()
    _sessions = build_sessions(build_engine(SETTINGS, Role.WORKER))


@worker_ready.connect  # type: ignore[untyped-decorator]
def _start_presence(sender: Any, **_: Any) -> None:
    """Show that this worker lives, from a thread of the main process."""
    queue = Queue(next(iter(sender.task_consumer.queues)).name)
    threading.Thread(target=_keep_present, args=(queue,), name="presence", daemon=True).start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _begin_stopping(**_: Any) -> None:
    STOPPING.set()
    _alive.set()


def _keep_present(queue: Queue) -> None:
    sessions = build_sessions(build_engine(SETTINGS, Role.WORKER, pool_size=1))
    hardware = describe_hardware(SETTINGS, _num_gpus)
    while True:
        hardware = hardware.model_copy(update={"disk_free_bytes": shutil.disk_usage(SETTINGS.home).free})
        worker = WorkerDescription(WORKER_ID, queue, socket.gethostname(), os.getpid(), _num_gpus, hardware)
        try:
            with sessions.begin() as session:
                workers.show_presence(session, worker)
        except SQLAlchemyError as error:
            logger.warning("cannot tell the database that this worker lives: %s", error)
        if _alive.wait(SETTINGS.heartbeat_seconds):
            break
    with sessions.begin() as session:
        workers.remove_presence(session, WORKER_ID)
