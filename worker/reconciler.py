"""The reconciler heals what messages and workers lose: rings for waiting work, and takes jobs from dead workers.

Everything it does is safe when doubled, so that several may run.
"""

import logging
import threading

from celery import Celery

from jobs import lifecycle, repository
from jobs.database import LOST_DATABASE, Role, Sessions, build_engine, build_sessions
from jobs.settings import Settings
from jobs.task_queue import BROKER_ERRORS, Queue, build_celery, count_waiting_rings, ring

logger = logging.getLogger(__name__)

MAX_RINGS = 50
"""Per queue and look; the next look rings for the rest."""


def run_reconciler(settings: Settings, stopping: threading.Event) -> None:
    """Look, every `reconcile_seconds`, until stopped."""
    sessions = build_sessions(build_engine(settings, Role.WORKER, pool_size=1))
    celery = build_celery(settings)
    while not stopping.wait(settings.reconcile_seconds):
        try:
            reconcile(sessions, celery, settings)
        except LOST_DATABASE as error:
            logger.warning("the database does not answer: %s", error)
        except BROKER_ERRORS as error:
            logger.warning("the broker does not answer: %s", error)


def reconcile(sessions: Sessions, celery: Celery, settings: Settings) -> None:
    with sessions.begin() as session:
        for job in lifecycle.reap_lost_jobs(session, settings.max_attempts):
            logger.warning("%s: taken from a lost worker, now %s", job.id, job.status)
        waiting = {
            Queue.TRAIN: repository.count_queued_jobs(session),
            Queue.CHECK: repository.count_waiting_datasets(session),
        }
    for queue, num_waiting in waiting.items():
        if num_waiting:
            missing = min(num_waiting, MAX_RINGS) - count_waiting_rings(celery, queue)
            for _ in range(missing):
                ring(celery, queue)
