"""Requests without a valid key: counted, and told in the log, at most once a minute however many they are.

Not in the audit log. Whoever reaches the port can send them, they belong to no tenant, and entries there stay for
ever: one chain of them would let anybody fill the disk, and hold up a lock that acts of tenants wait for.
"""

import logging
import threading
import time

from fastapi import Request

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0
_MAX_PATH = 100


class RefusedRequests:
    """One process's. It takes the same memory after a million of them."""

    def __init__(self, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        self._seconds = seconds_between_lines
        self._lock = threading.Lock()
        self._next_line = 0.0
        self._total = self._untold = 0

    def count(self, request: Request) -> None:
        """The first is told at once; the line after a pause tells how many there were in it. Never what was sent."""
        with self._lock:
            self._total += 1
            self._untold += 1
            if time.monotonic() < self._next_line:
                return
            self._next_line = time.monotonic() + self._seconds
            num_untold, self._untold = self._untold, 0
            total = self._total
        client = request.client.host if request.client else "unknown"
        path = request.url.path[:_MAX_PATH]
        message = "no valid API key: %d requests since the last such line, %d in all; the last: %s %r from %s"
        logger.warning(message, num_untold, total, request.method, path, client)
