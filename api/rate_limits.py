"""How often a key may ask, and how often an address may be wrong: token buckets in this process.

Not in Redis: it may be away at any time, and no request waits for it. A limit protects a process's threads and its
database connections, so that each process counts for itself. What has to hold over all of them, how many jobs wait or
run and how much is stored, is counted by the database.
"""

import math
import threading
import time
from collections.abc import Callable

from jobs.errors import LimitReached
from jobs.settings import Settings

BURST_SECONDS = 10
"""A bucket of requests holds what flows in within so long."""
FAILURE_BURST_SECONDS = 120
_MANY = 10_000
"""Buckets; with more, those that are full are forgotten."""
_KNOWN_SECONDS = 3600
"""A key that was right within so long is looked up from any address."""


class Buckets:
    """A bucket of tokens for each name: `per_second` flow in, up to `burst`. A rate of 0 limits nothing."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = max(1.0, burst)
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, name: str) -> float:
        """Take a token. 0; or, where there is none, the seconds until there is."""
        return self._take(name, 1)

    def peek(self, name: str) -> float:
        """The same without taking it."""
        return self._take(name, 0)

    def _take(self, name: str, num_tokens: int) -> float:
        if not self._per_second:
            return 0
        with self._lock:
            now = self._clock()
            level, since = self._levels.get(name, (self._burst, now))
            level = min(self._burst, level + (now - since) * self._per_second)
            if level < 1:
                return (1 - level) / self._per_second
            if num_tokens:
                self._levels[name] = (level - num_tokens, now)
                self._forget_full(now)
            return 0

    def _forget_full(self, now: float) -> None:
        if len(self._levels) > _MANY:
            full_after = self._burst / self._per_second
            self._levels = {n: (level, at) for n, (level, at) in self._levels.items() if now - at < full_after}


class RateLimits:
    """Of one API process."""

    def __init__(self, settings: Settings) -> None:
        self._reads = Buckets(settings.reads_per_second, BURST_SECONDS * settings.reads_per_second)
        self._writes = Buckets(settings.writes_per_second, BURST_SECONDS * settings.writes_per_second)
        failures = settings.failures_per_minute / 60
        self._failures = Buckets(failures, FAILURE_BURST_SECONDS * failures)
        self._known: dict[bytes, float] = {}

    def check_request(self, key_id: str, *, is_read: bool) -> None:
        """One more request of a key. Raises LimitReached."""
        buckets = self._reads if is_read else self._writes
        if wait := buckets.take(key_id):
            kind = "reads" if is_read else "changes things"
            raise _refuse("rate_limit_reached", f"this key {kind} too often", wait)

    def check_address(self, address: str, key_hash: bytes) -> None:
        """Before a key is looked up. Whoever uses a good key is not kept out by a neighbour. Raises LimitReached."""
        if not (wait := self._failures.peek(address)):
            return
        if time.monotonic() - self._known.get(key_hash, -math.inf) > _KNOWN_SECONDS:
            raise _refuse("too_many_failures", "too many wrong API keys came from this address", wait)

    def note_failure(self, address: str) -> None:
        self._failures.take(address)

    def note_success(self, key_hash: bytes) -> None:
        self._known[key_hash] = time.monotonic()


def _refuse(code: str, message: str, wait: float) -> LimitReached:
    seconds = math.ceil(wait)
    return LimitReached(code, f"{message}; again in {seconds} s", retry_after_seconds=seconds)
