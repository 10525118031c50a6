"""The Celery application; `medtune worker` starts it with the right options.

The main process keeps the worker's row fresh and cleans up (worker.presence); work happens in the pool processes, one
for each GPU, which outlive their tasks.
"""

import logging
import multiprocessing
import os
import time
from typing import Any

from celery.signals import (
    celeryd_after_setup,
    worker_process_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from jobs.database import Role, Sessions, build_engine, build_sessions
from jobs.ids import new_id
from jobs.processes import adopt_orphans
from jobs.settings import get_settings
from jobs.task_queue import Queue, build_celery
from worker.gpus import count_gpus
from worker.machine import Owner
from worker.presence import Cleaner, Presence

logger = logging.getLogger(__name__)

SETTINGS = get_settings()

_stopping = multiprocessing.RawValue("b", 0)
"""Shared with the pool processes. Without a lock: one that is killed while it holds one would stop all others."""

MAX_FAILURES = 3
_num_failures = multiprocessing.RawValue("i", 0)
_rests_until = multiprocessing.RawValue("d", 0.0)

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
_owner: Owner | None = None
_presence: Presence | None = None


def get_sessions() -> Sessions:
    """This pool process's own sessions: connections must not be shared over a fork."""
    assert _sessions is not None
    return _sessions


def get_owner() -> Owner:
    """This pool process, as leases name it."""
    assert _owner is not None
    return _owner


def get_num_gpus() -> int:
    return _num_gpus


def get_rest() -> float:
    """This worker takes no job before then, by time.monotonic."""
    return float(_rests_until.value)


def note_attempt(*, went_well: bool) -> None:
    """Three attempts in a row that came to nothing may be this machine's fault: others are to try first."""
    _num_failures.value = 0 if went_well else _num_failures.value + 1
    if _num_failures.value >= MAX_FAILURES:
        logger.error("%d attempts in a row came to nothing: resting", _num_failures.value)
        _rests_until.value = time.monotonic() + SETTINGS.rest_seconds
        _num_failures.value = 0


def is_stopping() -> bool:
    """This worker must stop: its pool processes give their jobs back."""
    return bool(_stopping.value)


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _configure_logging(**_: Any) -> None:
    logging.basicConfig(level=SETTINGS.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _begin_pool_process(**_: Any) -> None:
    global _sessions, _owner
    try:
        adopt_orphans()
        _sessions = build_sessions(build_engine(SETTINGS, Role.WORKER))
        _owner = Owner(SETTINGS)
    except Exception:  # Celery would go on with a process that can do nothing and hears every ring.
        logger.exception("this pool process cannot begin")
        os._exit(1)


@worker_ready.connect  # type: ignore[untyped-decorator]
def _start_presence(sender: Any, **_: Any) -> None:
    """Show that this worker lives, from a thread of the main process."""
    global _presence
    queue = Queue(next(iter(sender.task_consumer.queues)).name)
    _presence = Presence(
        SETTINGS, app, new_id("worker"), queue, num_gpus=_num_gpus, is_stopping=is_stopping, get_rest=get_rest
    )
    _presence.start()
    Cleaner(SETTINGS).start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _begin_stopping(**_: Any) -> None:
    _stopping.value = 1


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _end_presence(**_: Any) -> None:
    if _presence is not None:
        _presence.end()
