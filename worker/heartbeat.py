"""Renews a lease from a thread and a connection of its own, while the worker's main loop shows that it lives."""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from jobs import lifecycle
from jobs.database import LOST_DATABASE, Role, build_engine, build_sessions
from jobs.errors import LeaseLost
from jobs.lifecycle import Lease
from jobs.settings import Settings
from jobs.status import StopReason
from worker.launcher import Trainer

logger = logging.getLogger(__name__)

WISH_SECONDS = 1.0
"""A client's wish is heard so soon."""
HANGING = 1 / 3
"""A worker whose main loop did not look for this share of the lease hangs, and may not keep its job."""
STATEMENT_SECONDS = 4.0
"""A renewal that takes longer has failed, and the next one may work."""
STOP_AT, KILL_AT = 2 / 3, 11 / 12
"""A trainer whose lease was not renewed for these shares of it is asked to save and stop, and then killed: before
anybody else may take the job."""


def read_clock() -> float:
    """Seconds, also while the machine sleeps; the same in every process of the machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Heartbeat:
    """A context around an attempt. `wish` says why the run is to stop; `is_lost` that the job is not ours any more."""

    def __init__(
        self,
        settings: Settings,
        lease: Lease,
        claimed_at: float,
        is_worker_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`claimed_at`: when the claim was asked for, by `read_clock`."""
        self._is_worker_stopping = is_worker_stopping
        self._settings = settings
        self._lease = lease
        self._renewed_at = claimed_at
        self._trainer: Trainer | None = None
        self._looked_at = claimed_at
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.wish: StopReason | None = None
        self.is_lost = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def keep_alive(self) -> None:
        """Tells that the worker's main loop is alive; without it the lease is not renewed. Raises LeaseLost."""
        self._looked_at = read_clock()
        if self.is_lost:
            raise LeaseLost(self._lease.job_id)

    def find_stop_reason(self) -> StopReason | None:
        """Why whatever is done for the job is to stop. Keeps alive, too. Raises LeaseLost."""
        self.keep_alive()
        if self.wish is not None:
            return self.wish
        if self._is_worker_stopping():
            return StopReason.WORKER_STOPPED
        # The database did not answer for so long that another worker may soon take the job.
        is_running_out = self._looked_at > self._renewed_at + STOP_AT * self._lease.seconds
        return StopReason.DATABASE_LOST if is_running_out else None

    def watch(self, trainer: Trainer | None) -> None:
        """From now on this trainer lives no longer than the lease, even if this process hangs."""
        self._trainer = trainer
        self._tell_trainer()

    def _tell_trainer(self) -> None:
        if self._trainer is not None:
            seconds = self._lease.seconds
            self._trainer.allow_until(self._renewed_at + STOP_AT * seconds, self._renewed_at + KILL_AT * seconds)

    def _run(self) -> None:
        engine = build_engine(self._settings, Role.WORKER, pool_size=1, statement_seconds=STATEMENT_SECONDS)
        sessions = build_sessions(engine)
        pause = min(WISH_SECONDS, self._settings.heartbeat_seconds)
        while not self._ending.wait(pause):
            asked_at = read_clock()
            is_hanging = asked_at > self._looked_at + HANGING * self._lease.seconds
            is_due = asked_at >= self._renewed_at + self._settings.heartbeat_seconds and not is_hanging
            ask = lifecycle.renew_lease if is_due else lifecycle.find_wish
            try:
                with sessions.begin() as session:
                    wish = ask(session, self._lease)
            except LeaseLost:
                self.is_lost = True
                break
            except LOST_DATABASE as error:
                logger.warning("%s: the lease is not renewed: %s", self._lease.job_id, error)
                continue
            except Exception:  # A dead heartbeat would end a training that could go on.
                logger.exception("%s: the lease is not renewed", self._lease.job_id)
                continue
            self.wish = wish
            if is_due:
                self._renewed_at = asked_at
                self._tell_trainer()
        engine.dispose()
