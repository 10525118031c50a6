"""Whether a run that lives still gets anywhere: a hung collective keeps its process alive for ever."""

import statistics
import time
from collections import deque

from jobs.settings import Settings

MANY_STEPS = 10
"""A run may be silent for as many of its median steps."""
BLINK_SECONDS = 1.0
"""Looks that lie further apart tell that the worker itself stood still, with its machine or before the database."""


class StallClock:
    """Any event is progress; between two of them a run may take its time, and no longer.

    Time in which nobody looked does not count: a machine that stood still is not a run that hangs.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen = (0, 0)
        self._moved_at = self._stepped_at = self._looked_at = time.monotonic()
        self._durations: deque[float] = deque(maxlen=50)

    def look(self, *, num_events: int, last_step: int, is_blind: bool = False) -> None:
        """Note what the run has told so far. While nothing is read of it (`is_blind`), its silence says nothing."""
        now = time.monotonic()
        if now - self._looked_at > BLINK_SECONDS:
            self._moved_at += now - self._looked_at
        self._looked_at = now
        events, step = self._seen
        if step and last_step > step:
            self._durations.append((now - self._stepped_at) / (last_step - step))
        if last_step > step:
            self._stepped_at = now
        if num_events > events or is_blind:
            self._moved_at = now
        self._seen = (num_events, last_step)

    def is_stalled(self, phase: str) -> bool:
        return time.monotonic() - self._moved_at > self.get_limit(phase)

    def get_limit(self, phase: str) -> float:
        """Seconds of silence that are still normal."""
        if phase != "training":
            return self._settings.start_seconds
        median = statistics.median(self._durations) if self._durations else 0.0
        return max(self._settings.stall_seconds, MANY_STEPS * median)
