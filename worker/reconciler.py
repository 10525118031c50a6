"""The reconciler heals what messages and workers lose: it rings for waiting work, takes jobs from lost workers, and
looks whether the tables are as they must be.

Everything it does is safe when doubled; still, of several only one leads, so that they do not ring twice as often.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery
from sqlalchemy import Connection, Engine, func, select

from jobs import idempotency, invariants, lifecycle, repository, workers
from jobs.database import LOST_DATABASE, Role, Sessions, build_engine, build_sessions
from jobs.settings import Settings
from jobs.task_queue import BROKER_ERRORS, Queue, build_celery, count_waiting_rings, ring
from worker.host import build_retries

logger = logging.getLogger(__name__)

MAX_RINGS = 50
"""Per queue and look; the next look rings for the rest."""
TABLES_SECONDS = 600.0
_LEADER = 7265677  # any number that nothing else of this database locks


def run_reconciler(settings: Settings, stopping: threading.Event) -> None:
    """Lead as soon as no other does, and look every `reconcile_seconds`, until stopped."""
    engine = build_engine(settings, Role.WORKER, pool_size=2)
    sessions, celery = build_sessions(engine), build_celery(settings)
    brake = ReapBrake(settings.lease_seconds)
    while not stopping.is_set():
        try:
            with _leading(engine) as leader:
                brake.note_database(is_there=True)
                if leader is not None:
                    _lead(leader, sessions, celery, settings, brake, stopping)
        except LOST_DATABASE as error:
            logger.warning("the database does not answer: %s", error)
            brake.note_database(is_there=False)
        stopping.wait(settings.reconcile_seconds)


@contextmanager
def _leading(engine: Engine) -> Iterator[Connection | None]:
    """The connection that holds the leader's lock: whoever loses it no longer leads. None: another leads."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        is_leader = bool(connection.scalar(select(func.pg_try_advisory_lock(_LEADER))))
        try:
            yield connection if is_leader else None
        finally:
            if is_leader:
                connection.invalidate()  # Back in the pool it would lead on.


def _lead(
    leader: Connection,
    sessions: Sessions,
    celery: Celery,
    settings: Settings,
    brake: "ReapBrake",
    stopping: threading.Event,
) -> None:
    """Raises a database's error: then somebody, perhaps this one, begins to lead again."""
    logger.info("leading")
    looked_at = 0.0
    while not stopping.is_set():
        leader.scalar(select(1))
        reap(sessions, settings, brake)
        try:
            ring_for_waiting_work(sessions, celery)
        except BROKER_ERRORS as error:
            logger.warning("the broker does not answer: %s", error)
        if time.monotonic() > looked_at + TABLES_SECONDS:
            looked_at = time.monotonic()
            look_after_tables(sessions)
        stopping.wait(settings.reconcile_seconds)


class ReapBrake:
    """Keeps an outage of the database from looking like the death of all workers.

    Nothing is reaped until database and reconciler have been up for a lease's time: every living worker has had the
    chance to renew. When most leases end at once, nothing is reaped for as long again.
    """

    MANY, SHARE = 3, 0.5

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._released_at = time.monotonic() + lease_seconds
        self._has_paused = False
        self._lost_at: float | None = None

    def note_database(self, *, is_there: bool) -> None:
        """A hiccup that cost no worker its lease does not count."""
        now = time.monotonic()
        if not is_there:
            self._lost_at = self._lost_at or now
        elif self._lost_at is not None:
            if now - self._lost_at > self._lease_seconds / 4:
                self._released_at = now + self._lease_seconds
            self._lost_at = None

    def is_on(self, sessions: Sessions) -> bool:
        if time.monotonic() < self._released_at:
            return True
        with sessions.begin() as session:
            if repository.get_database_uptime(session) < self._lease_seconds:
                return True
            num_held, num_over = repository.count_leases(session)
        if num_over < self.MANY or num_over <= self.SHARE * num_held:
            self._has_paused = False
            return False
        if self._has_paused:  # They had their second chance.
            return False
        logger.error("%d of %d leases are over at once: waiting for one lease's time", num_over, num_held)
        self._has_paused = True
        self._released_at = time.monotonic() + self._lease_seconds
        return True


def reap(sessions: Sessions, settings: Settings, brake: ReapBrake) -> None:
    if brake.is_on(sessions):
        return
    with sessions.begin() as session:
        for job in lifecycle.reap_lost_jobs(session, build_retries(settings)):
            logger.warning("%s: taken from a lost worker, now %s", job.id, job.status)


def ring_for_waiting_work(sessions: Sessions, celery: Celery) -> None:
    """As many rings as there is work, less those that lie in the queue."""
    with sessions.begin() as session:
        waiting = {
            Queue.TRAIN: repository.count_waiting_work(session, MAX_RINGS),
            Queue.CHECK: repository.count_waiting_datasets(session, MAX_RINGS),
        }
    for queue, num_waiting in waiting.items():
        if num_waiting:
            missing = num_waiting - count_waiting_rings(celery, queue)
            for _ in range(missing):
                ring(celery, queue)


def look_after_tables(sessions: Sessions) -> None:
    """Tell of what must not be, and forget what nobody needs."""
    with sessions.begin() as session:
        workers.forget_lost_workers(session)
        idempotency.forget_old_keys(session)
        lifecycle.forget_deliveries(session)
        for violation in invariants.find_violations(session):
            logger.error("%s: %s", violation.rule, ", ".join(violation.rows))
