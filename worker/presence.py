"""What a worker's main process does beside its pool: it shows that it lives, and cleans up after the dead."""

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable

from celery import Celery
from celery.worker import state
from sqlalchemy.exc import SQLAlchemyError

from jobs import workers
from jobs.database import LOST_DATABASE, Role, build_engine, build_sessions
from jobs.settings import Settings
from jobs.signing_key import find_signing_key
from jobs.task_queue import BROKER_ERRORS, Queue, count_waiting_rings
from jobs.workers import WorkerDescription
from trainer_core.errors import ConfigurationError
from worker.deleting import delete_work_folders
from worker.gpus import describe_hardware
from worker.host import delete_dead_workspaces, delete_old_runs, recover_host
from worker.machine import HOSTNAME

logger = logging.getLogger(__name__)

OLD_RUNS_SECONDS = 3600.0


def find_problem(settings: Settings, queue: Queue, *, is_stopping: bool, rests_until: float) -> str | None:
    """Why this worker takes no job now."""
    if is_stopping:
        return "it shuts down"
    if time.monotonic() < rests_until:
        return "it rests for a while: its last attempts came to nothing before their first step"
    free = shutil.disk_usage(settings.home).free
    if free < settings.disk_reserve_bytes:
        reserve = settings.disk_reserve_bytes / 2**30
        return f"its disk is nearly full: {free / 2**30:.1f} GiB are free, {reserve:.1f} GiB are its reserve"
    return _find_key_problem(settings) if queue == Queue.TRAIN else None


def _find_key_problem(settings: Settings) -> str | None:
    """Without the key the end of hours of training could not be signed."""
    try:
        find_signing_key(settings)
    except ConfigurationError as error:
        return f"{error.message} {error.remedy}"
    except OSError as error:
        return f"the signing key cannot be read: {error.strerror}"
    return None


class DeafnessWatch:
    """Whether rings lie in the queue while this worker is idle and takes none: its connection only looks alive."""

    def __init__(self, app: Celery, queue: Queue, seconds: float) -> None:
        self._app = app
        self._queue = queue
        self._seconds = seconds
        self._idle_since: float | None = None
        self._num_taken = -1

    def is_deaf(self) -> bool:
        """Asks Redis. Raises one of BROKER_ERRORS."""
        num_taken = sum(state.total_count.values())
        is_busy = bool(state.active_requests or state.reserved_requests)
        if is_busy or num_taken != self._num_taken or count_waiting_rings(self._app, self._queue) == 0:
            self._num_taken, self._idle_since = num_taken, None
            return False
        self._idle_since = self._idle_since or time.monotonic()
        return time.monotonic() - self._idle_since > self._seconds


class Cleaner(threading.Thread):
    """Finishes, at every heartbeat, what dead workers of this machine began, and deletes what deleted jobs left on it.

    That may take long; presence must not.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="cleaner", daemon=True)
        self._settings = settings
        self._sessions = build_sessions(build_engine(settings, Role.WORKER, pool_size=1))
        self._old_runs_at = 0.0

    def run(self) -> None:
        while True:
            try:
                self._look()
            except LOST_DATABASE as error:
                logger.warning("cannot clean up after dead workers now: %s", error)
            except Exception:
                logger.exception("cannot clean up after dead workers of this machine")
            time.sleep(self._settings.heartbeat_seconds)

    def _look(self) -> None:
        recover_host(self._sessions, self._settings)
        delete_dead_workspaces(self._settings)
        delete_work_folders(self._sessions, self._settings)
        if time.monotonic() > self._old_runs_at:
            self._old_runs_at = time.monotonic() + OLD_RUNS_SECONDS
            delete_old_runs(self._settings)


class Presence(threading.Thread):
    """Keeps the worker's row, until `stopping` is set and then until the main process ends."""

    def __init__(
        self,
        settings: Settings,
        app: Celery,
        worker_id: str,
        queue: Queue,
        *,
        num_gpus: int,
        is_stopping: Callable[[], bool],
        get_rest: Callable[[], float],
    ) -> None:
        super().__init__(name="presence", daemon=True)
        self._settings = settings
        self._worker_id = worker_id
        self._queue = queue
        self._num_gpus = num_gpus
        self._is_stopping = is_stopping
        self._get_rest = get_rest
        self._hardware = describe_hardware(settings, num_gpus)
        self._deafness = DeafnessWatch(app, queue, settings.deaf_seconds)
        self._sessions = build_sessions(build_engine(settings, Role.WORKER, pool_size=1))
        self._ended = threading.Event()

    def run(self) -> None:
        while True:
            self._look()
            if self._ended.wait(self._settings.heartbeat_seconds):
                return

    def end(self) -> None:
        """The row goes: the worker is no more."""
        self._ended.set()
        try:
            with self._sessions.begin() as session:
                workers.remove_presence(session, self._worker_id)
        except SQLAlchemyError as error:
            logger.warning("cannot tell the database that this worker ends: %s", error)

    def _look(self) -> None:
        try:
            self._show()
            self._end_if_deaf()
        except LOST_DATABASE as error:
            logger.warning("cannot tell the database that this worker lives: %s", error)
        except Exception:
            logger.exception("cannot show that this worker lives")

    def _show(self) -> None:
        hardware = self._hardware.model_copy(update={"disk_free_bytes": shutil.disk_usage(self._settings.home).free})
        problem = find_problem(
            self._settings, self._queue, is_stopping=self._is_stopping(), rests_until=self._get_rest()
        )
        worker = WorkerDescription(
            self._worker_id, self._queue, HOSTNAME, os.getpid(), self._num_gpus, hardware, problem
        )
        with self._sessions.begin() as session:
            workers.show_presence(session, worker)

    def _end_if_deaf(self) -> None:
        """Whoever started this worker starts another."""
        try:
            is_deaf = self._deafness.is_deaf()
        except BROKER_ERRORS:
            return
        if is_deaf and not self._is_stopping():
            logger.error("rings lie in the queue and none is heard: this worker ends, to be started again")
            os.kill(os.getpid(), signal.SIGTERM)
