"""Reads what a run appends to its files, and makes rows of it."""

import logging
import math
import re
from collections import deque
from pathlib import Path

from pydantic import ValidationError

from jobs.ids import new_id
from jobs.lifecycle import News
from jobs.models import Attempt, Json
from trainer_core.reporting import CheckpointEvent, ErrorEvent, Event, MetricsEvent, SafetyEvent, parse_event
from trainer_core.run_dir import RunDir
from worker.masking import Masker

logger = logging.getLogger(__name__)

CHUNK_BYTES = 64 * 1024
"""Largest log chunk; a longer line is cut."""
READ_BYTES = 4 << 20
"""What one look at the log takes in: more waits on disk, which is the buffer."""
LONGEST_WORD = 4096
"""So far back a long line is cut between two words, so that no secret lies on both sides."""
MAX_METRICS = 10_000
"""As many wait for the database; more wait on disk."""
TAIL_LINES = 20
_MANY = 2**62
"""What a column holds."""
_OVERWRITTEN = re.compile(rb"^[^\n]*\r(?!\n)", re.MULTILINE)
"""What a progress bar wrote over itself. Looked for at the beginnings of lines only: from every byte of a long line it
would take many seconds, in which no other thread runs and no lease is renewed."""


class FileTail:
    """Reads what was appended to a file, whole lines at a time."""

    def __init__(self, path: Path, offset: int = 0, longest_line: int = CHUNK_BYTES) -> None:
        self._path = path
        self.offset = offset
        self._longest_line = longest_line

    def read_lines(self, *, to_the_end: bool = False) -> bytes:
        """New whole lines, up to READ_BYTES. A last line without its end comes when asked for, or when too long."""
        try:
            with self._path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(READ_BYTES)
        except FileNotFoundError:
            return b""
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) >= self._longest_line:
            end = find_cut(data, self._longest_line)
        if to_the_end and len(data) < READ_BYTES:
            end = len(data)
        self.offset += end
        return data[:end]


def find_cut(data: bytes, longest: int) -> int:
    """Where a long line is cut: after its last space or quotation mark, if there is one near the end."""
    ends = (data.rfind(mark, longest - LONGEST_WORD, longest) + 1 for mark in (b" ", b"\t", b"\r", b'"', b","))
    return max(ends) or longest


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


class Collector:
    """One attempt's news. `take_news` hands over what came together since the last time.

    It begins where the database's rows of the attempt end, so that after a worker's death another goes on without a
    gap and without a double.
    """

    def __init__(
        self, run_dir: RunDir, attempt: Attempt, last_seqs: tuple[int, int], masker: Masker | None = None
    ) -> None:
        self._masker = masker or Masker()
        self._metric_seq, self._chunk_seq = last_seqs
        self._log = FileTail(run_dir.log, attempt.log_offset)
        self._events = FileTail(run_dir.events, attempt.events_offset, longest_line=READ_BYTES)
        self._news = News()
        self._progress: Json | None = None
        self.phase = "starting"
        self.last_step = 0
        self.num_events = 0
        self.error: ErrorEvent | None = None
        """What the trainer said when it gave up."""
        self.log_tail: deque[str] = deque(maxlen=TAIL_LINES)

    @property
    def news(self) -> News:
        return self._news

    def take_news(self) -> News:
        """What was collected; from here on it is the caller's."""
        news, self._news = self._news, News()
        return news

    def is_full(self) -> bool:
        """As much waits for the database as one look takes in."""
        return len(self._news.log_chunks) * CHUNK_BYTES >= READ_BYTES or len(self._news.metrics) >= MAX_METRICS

    def collect(self, *, to_the_end: bool = False) -> bool:
        """Take in one look's worth; while the collector is full, nothing: it stays on disk. False: nothing was new."""
        if self.is_full():
            return False
        events = self._masker.mask(self._events.read_lines())
        for line in events.splitlines():
            self._take_line(line)
        log = self._masker.mask(self._log.read_lines(to_the_end=to_the_end))  # Before it is cut into chunks.
        for chunk in split_chunks(log):
            self._take_log(clean_text(chunk))
        if events or log:
            self._news.offsets = (self._log.offset, self._events.offset)
        return bool(events or log)

    def _take_line(self, line: bytes) -> None:
        try:
            self._take_event(parse_event(line.replace(b"\\u0000", b"")))  # Postgres stores no NUL.
        except ValidationError:
            logger.warning("an event that is none: %.200r", line)

    def _take_log(self, text: str) -> None:
        self._chunk_seq += 1
        lines = text.splitlines()
        self._news.log_chunks.append({"seq": self._chunk_seq, "num_lines": len(lines), "text": text})
        self.log_tail.extend(lines[-TAIL_LINES:])

    def _take_event(self, event: Event) -> None:
        self.num_events += 1
        if isinstance(event, MetricsEvent):
            self._take_metrics(event)
        elif isinstance(event, CheckpointEvent):
            return  # It counts when it is in the store (worker.checkpoints).
        elif isinstance(event, ErrorEvent):
            self.error = event
            self._add_event(event.type, event.message, {"code": event.code, "remedy": event.remedy, **event.details})
        elif event.type == "phase":
            self.phase = event.phase
            self._add_event(event.type, event.message or event.phase, {"phase": event.phase, **event.details})
            self._update_progress()
        elif isinstance(event, SafetyEvent):
            self._take_safety_round(event)
        else:
            self._add_event(event.type, event.message, {"code": event.code, **event.details})

    def _take_metrics(self, event: MetricsEvent) -> None:
        if not (math.isfinite(event.epoch) and 0 <= event.step < _MANY and 0 <= event.tokens < _MANY):
            logger.warning(
                "metrics that cannot be: step %s, epoch %s, tokens %s", event.step, event.epoch, event.tokens
            )
            return
        values = {name: value for name, value in event.values.items() if math.isfinite(value)}
        self._metric_seq += 1
        self.last_step = event.step
        row = {"step": event.step, "epoch": event.epoch, "tokens": event.tokens, "values": values}
        self._news.metrics.append({"seq": self._metric_seq, **row})
        self._news.latest_metrics |= values
        self._progress = {
            "step": event.step,
            "max_steps": event.max_steps,
            "epoch": event.epoch,
            "tokens": event.tokens,
            "percent": round(100 * event.step / max(event.max_steps, 1), 2),
            "eta_seconds": event.eta_seconds,
        }
        self.phase = "training"
        self._update_progress()

    def _take_safety_round(self, event: SafetyEvent) -> None:
        details = event.details
        told = {(one["probe_id"], one["check"]): one for one in details["failures"]}
        self._news.safety_rounds.append(
            {
                "step": event.step,
                "is_last": details["round"]["is_last"],
                "ok": event.ok,
                "message": event.message,
                "summary": details["round"],
                "num_findings": details["num_failures"],
                "findings": details["failures"],
                # With question and answer, for the people who decide about them.
                "open_findings": [
                    told.get((one["probe_id"], one["check"]), {}) | one for one in details["open_findings"]
                ],
                "escalation": details["escalation"],
            }
        )
        counts = {"num_findings": details["num_failures"], "num_open_findings": len(details["open_findings"])}
        self._add_event(event.type, event.message, {"step": event.step, "ok": event.ok, **counts})

    def _update_progress(self) -> None:
        if self._progress is not None:
            self._news.progress = {**self._progress, "phase": self.phase}

    def _add_event(self, type_: str, message: str, data: Json) -> None:
        self._news.events.append({"id": new_id("evt"), "type": type_, "message": message, "data": data})
