"""Follows a trainer's files into the database while it runs, and stops it when somebody wants that."""

import logging
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from jobs import lifecycle
from jobs.database import LOST_DATABASE, Sessions, run_until_done
from jobs.errors import LeaseLost
from jobs.ids import new_id
from jobs.lifecycle import Lease, News
from jobs.models import Json
from jobs.settings import Settings
from jobs.status import StopReason
from trainer_core.reporting import CheckpointEvent, ErrorEvent, Event, MetricsEvent, parse_event
from trainer_core.run_dir import RunDir
from worker.launcher import Trainer

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
CHUNK_BYTES = 64 * 1024
"""Largest log chunk; a longer line is cut."""
READ_BYTES = 4 << 20
"""What one look at the log takes in: more waits on disk, which is the buffer."""
MAX_METRICS = 10_000
"""As many wait for the database; more wait on disk."""
TAIL_LINES = 20
_OVERWRITTEN = re.compile(rb"[^\n]*\r(?!\n)")
"""What a progress bar wrote over itself."""


class FileTail:
    """Reads what was appended to a file, whole lines at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_lines(self, *, to_the_end: bool = False) -> bytes:
        """New whole lines, up to READ_BYTES. A last line without its end comes when asked for, or when too long."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(READ_BYTES)
        except FileNotFoundError:
            return b""
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) >= CHUNK_BYTES:
            end = CHUNK_BYTES
        if to_the_end and len(data) < READ_BYTES:
            end = len(data)
        self._offset += end
        return data[:end]


def split_chunks(data: bytes) -> list[bytes]:
    """Cuts at line ends into pieces of at most CHUNK_BYTES."""
    chunks = []
    start = 0
    while start < len(data):
        end = min(start + CHUNK_BYTES, len(data))
        if end < len(data):
            end = data.rfind(b"\n", start, end) + 1 or end
        chunks.append(data[start:end])
        start = end
    return chunks


def clean_text(data: bytes) -> str:
    """Postgres stores no NUL; what is not UTF-8 is shown as such; of a progress bar its last state stays."""
    return _OVERWRITTEN.sub(b"", data).replace(b"\0", b"").decode("utf-8", errors="replace")


class Monitor:
    """One attempt's eyes and hands. `error` is what the trainer said when it gave up; `log_tail` its last lines."""

    def __init__(
        self,
        sessions: Sessions,
        lease: Lease,
        run_dir: RunDir,
        settings: Settings,
        *,
        first_seqs: tuple[int, int],
        is_worker_stopping: Callable[[], bool],
    ) -> None:
        self._sessions = sessions
        self._lease = lease
        self._run_dir = run_dir
        self._settings = settings
        self._metric_seq, self._chunk_seq = first_seqs
        self._is_worker_stopping = is_worker_stopping
        self._log = FileTail(run_dir.log)
        self._events = FileTail(run_dir.events)
        self._news = News()
        self._progress: Json | None = None
        self._phase = "starting"
        self._flushed_at = time.monotonic()
        self._is_cancel_wanted = False
        self.error: ErrorEvent | None = None
        self.log_tail: deque[str] = deque(maxlen=TAIL_LINES)

    def run(self, command: str) -> tuple[int, StopReason | None]:
        """Run a trainer command to its end. Returns its exit code (-N: signal N) and why it was stopped, if it was.

        Raises LeaseLost after everything that the trainer started is gone.
        """
        words = [*self._settings.trainer_command, command, str(self._run_dir.path)]
        trainer = Trainer(words, self._run_dir.path, self._run_dir.log)
        stop_reason = None
        try:
            while trainer.poll() is None:
                self._collect()
                self._flush_if_due()
                stop_reason = self._find_stop_reason()
                if stop_reason is not None:
                    self._begin_stopping(stop_reason)
                    break
                trainer.wait(POLL_SECONDS)
        finally:
            exit_code = trainer.stop(self._settings.stop_grace_seconds)
        self._collect(to_the_end=True)
        self._flush(patiently=True)
        return exit_code, stop_reason

    def _begin_stopping(self, reason: StopReason) -> None:
        try:
            with self._sessions.begin() as session:
                lifecycle.begin_stopping(session, self._lease, reason)
        except LOST_DATABASE as error:
            logger.warning("%s: stopping, which the database does not hear: %s", self._lease.job_id, error)

    def _find_stop_reason(self) -> StopReason | None:
        if self._is_cancel_wanted:
            return StopReason.CANCELLED
        return StopReason.WORKER_STOPPED if self._is_worker_stopping() else None

    # --- From the files ---

    def _collect(self, *, to_the_end: bool = False) -> None:
        """Takes what is new; but while as much waits for the database as one look takes in, it stays on disk."""
        if self._is_full() and not to_the_end:
            return
        while events := self._events.read_lines():
            for line in events.splitlines():
                self._take_line(line)
            if not to_the_end:
                break
        while data := self._log.read_lines(to_the_end=to_the_end):
            for chunk in split_chunks(data):
                self._take_log(clean_text(chunk))
            if not to_the_end:
                break
            self._flush(patiently=True)

    def _is_full(self) -> bool:
        return len(self._news.log_chunks) * CHUNK_BYTES >= READ_BYTES or len(self._news.metrics) >= MAX_METRICS

    def _take_line(self, line: bytes) -> None:
        try:
            self._take_event(parse_event(line))
        except ValidationError:
            logger.warning("%s: an event that is none: %.200r", self._lease.job_id, line)

    def _take_log(self, text: str) -> None:
        self._chunk_seq += 1
        lines = text.splitlines()
        self._news.log_chunks.append({"seq": self._chunk_seq, "num_lines": len(lines), "text": text})
        self.log_tail.extend(lines[-TAIL_LINES:])

    def _take_event(self, event: Event) -> None:
        if isinstance(event, MetricsEvent):
            self._take_metrics(event)
            return
        if isinstance(event, CheckpointEvent):
            row = {"path": event.path, "num_bytes": event.bytes, "metrics": event.metrics}
            self._news.checkpoints.append({"id": new_id("ckpt"), "step": event.step, **row})
            self._add_event(event.type, f"checkpoint at step {event.step}", {"step": event.step, "bytes": event.bytes})
        elif isinstance(event, ErrorEvent):
            self.error = event
            self._add_event(event.type, event.message, {"code": event.code, "remedy": event.remedy, **event.details})
        elif event.type == "phase":
            self._phase = event.phase
            self._add_event(event.type, event.message or event.phase, {"phase": event.phase, **event.details})
            self._update_progress()
        else:
            self._add_event(event.type, event.message, {"code": event.code, **event.details})

    def _take_metrics(self, event: MetricsEvent) -> None:
        self._metric_seq += 1
        row = {"step": event.step, "epoch": event.epoch, "tokens": event.tokens, "values": event.values}
        self._news.metrics.append({"seq": self._metric_seq, **row})
        self._news.latest_metrics |= event.values
        self._progress = {
            "step": event.step,
            "max_steps": event.max_steps,
            "epoch": event.epoch,
            "tokens": event.tokens,
            "percent": round(100 * event.step / max(event.max_steps, 1), 2),
            "eta_seconds": event.eta_seconds,
        }
        self._phase = "training"
        self._update_progress()

    def _update_progress(self) -> None:
        if self._progress is not None:
            self._news.progress = {**self._progress, "phase": self._phase}

    def _add_event(self, type_: str, message: str, data: Json) -> None:
        self._news.events.append({"id": new_id("evt"), "type": type_, "message": message, "data": data})

    # --- Into the database ---

    def _flush_if_due(self) -> None:
        age = time.monotonic() - self._flushed_at
        has_news = self._news != News()
        if self._is_full() or age >= (self._settings.flush_seconds if has_news else self._settings.heartbeat_seconds):
            try:
                self._flush()
            except LOST_DATABASE as error:
                logger.warning("%s: the database does not answer, the news wait: %s", self._lease.job_id, error)
                if age > 0.75 * self._lease.seconds:
                    # Nobody may take the job before this trainer is gone, so it goes before its lease ends.
                    raise LeaseLost(self._lease.job_id) from error

    def _flush(self, *, patiently: bool = False) -> None:
        """Raises a database's error at once; or, patiently, when the lease is about to end."""
        seconds = 0.75 * self._lease.seconds if patiently else 0
        self._is_cancel_wanted = run_until_done(
            self._sessions, lambda session: lifecycle.store_news(session, self._lease, self._news), seconds
        )
        self._news = News()
        self._flushed_at = time.monotonic()
