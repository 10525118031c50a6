"""Runs a trainer's commands: follows its files into the database, and stops it when there is a reason."""

import logging
import shutil
import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from jobs import lifecycle
from jobs.database import LOST_DATABASE, Sessions, run_until_done
from jobs.lifecycle import Lease, News
from jobs.settings import Settings
from jobs.status import StopReason
from trainer_core.run_dir import RunDir
from worker.checkpoints import CheckpointShipper
from worker.collector import Collector
from worker.gpus import GpuSlots
from worker.heartbeat import Heartbeat
from worker.launcher import Exit, Trainer
from worker.rows import find_row_report
from worker.stall import StallClock

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
_SAVE_FIRST = frozenset(
    {
        StopReason.PAUSED,
        StopReason.WORKER_STOPPED,
        StopReason.TIME_LIMIT,
        StopReason.DISK_FULL,
        StopReason.DATABASE_LOST,
    }
)
"""Here a checkpoint is worth waiting for."""


class Monitor:
    """One attempt's eyes and hands."""

    def __init__(  # noqa: PLR0913  by keyword
        self,
        settings: Settings,
        sessions: Sessions,
        lease: Lease,
        run_dir: RunDir,
        *,
        heartbeat: Heartbeat,
        collector: Collector,
        shipper: CheckpointShipper,
        slots: GpuSlots,
        is_worker_stopping: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._lease = lease
        self._run_dir = run_dir
        self._heartbeat = heartbeat
        self._collector = collector
        self._shipper = shipper
        self._slots = slots
        self._is_worker_stopping = is_worker_stopping
        self._are_rows_told = False
        self._waiting = News()
        self._flushed_at = self._looked_at_disk = time.monotonic()

    def run(self, command: str) -> tuple[Exit, StopReason | None]:
        """Run a trainer command to its end. Returns how it ended and why it was stopped, if it was.

        Raises LeaseLost. In any case everything that the trainer started is gone then.
        """
        words = [*self._settings.trainer_command, command, str(self._run_dir.path)]
        trainer = Trainer(
            words,
            self._run_dir.path,
            self._run_dir.log,
            environment=self._slots.environment,
            held=self._slots.locks,
        )
        stall, stop_reason = StallClock(self._settings), None
        try:
            self._heartbeat.watch(trainer)
            while trainer.is_running:
                self._look(stall)
                reason = self._find_stop_reason(stall)
                if reason is not None and (stop_reason is None or reason == StopReason.CANCELLED != stop_reason):
                    stop_reason = reason
                    self._begin_stopping(reason, trainer)
                trainer.wait(POLL_SECONDS)
        finally:
            self._heartbeat.watch(None)
            ending = trainer.end()
        self._tell_rows()
        self.finish_collecting()
        return ending, stop_reason

    def finish_collecting(self) -> None:
        """Everything that the run told is in the database then, however long that is away."""
        while self._collector.collect(to_the_end=True) or self._has_news():
            self._heartbeat.keep_alive()  # A long log takes its time.
            self._flush(patiently=True)

    def _look(self, stall: StallClock) -> None:
        self._flush_if_due()  # First: it may take its time, in which the run does not stand still.
        self._collector.collect()
        self._tell_rows()
        stall.look(
            num_events=self._collector.num_events,
            last_step=self._collector.last_step,
            is_blind=self._collector.is_full(),
        )
        self._shipper.wake_if_new()

    def _find_stop_reason(self, stall: StallClock) -> StopReason | None:
        reason = self._heartbeat.find_stop_reason()
        if reason is not None:
            return reason
        if stall.is_stalled(self._collector.phase):
            return StopReason.STALLED
        return StopReason.DISK_FULL if self._is_disk_full() else None

    def _is_disk_full(self) -> bool:
        now = time.monotonic()
        if now - self._looked_at_disk < min(1.0, self._settings.heartbeat_seconds):
            return False
        self._looked_at_disk = now
        return shutil.disk_usage(self._run_dir.path).free < self._settings.disk_reserve_bytes / 2

    def _begin_stopping(self, reason: StopReason, trainer: Trainer) -> None:
        saves = reason in _SAVE_FIRST
        trainer.stop(self._settings.save_grace_seconds if saves else self._settings.stop_grace_seconds)
        logger.info("%s: stopping: %s", self._lease.job_id, reason)
        try:
            with self._sessions.begin() as session:
                lifecycle.begin_stopping(session, self._lease, reason)
        except LOST_DATABASE as error:
            logger.warning("%s: stopping, which the database does not hear: %s", self._lease.job_id, error)

    # --- Into the database ---

    def _tell_rows(self) -> None:
        """Once they are prepared; what cannot be told now is tried again."""
        if self._are_rows_told:
            return
        try:
            if (report := find_row_report(self._run_dir)) is None:
                return
            with self._sessions.begin() as session:
                lifecycle.store_rows(session, self._lease, report.model_dump(mode="json"))
            self._are_rows_told = True
        except ValueError as error:
            self._are_rows_told = True  # There will be nothing else to tell.
            logger.warning(
                "%s: what it tells of its rows is not readable: %s", self._lease.job_id, type(error).__name__
            )
        except LOST_DATABASE as error:
            logger.warning("%s: how its rows look is not in the database yet: %s", self._lease.job_id, error)

    def _has_news(self) -> bool:
        """News that were taken and not stored wait beside those that came since."""
        return self._collector.news != News() or self._waiting != News()

    def _flush_if_due(self) -> None:
        is_due = time.monotonic() - self._flushed_at >= self._settings.flush_seconds
        if self._has_news() and (is_due or self._collector.is_full()):
            try:
                self._flush()
            except LOST_DATABASE as error:
                self._flushed_at = time.monotonic()
                logger.warning("%s: the database does not answer, the news wait: %s", self._lease.job_id, error)

    def _flush(self, *, patiently: bool = False) -> None:
        """Raises a database's error at once; or, patiently, when this worker must stop and asked for long."""
        if self._waiting == News():
            self._waiting = self._collector.take_news()
        if self._waiting == News():
            return
        news = self._waiting

        def store(session: Session) -> None:
            lifecycle.store_news(session, self._lease, news)

        if patiently:
            run_until_done(self._sessions, store, self._is_worker_stopping)
        else:
            with self._sessions.begin() as session:
                store(session)
        self._waiting = News()
        self._flushed_at = time.monotonic()
