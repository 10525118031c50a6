"""Work that may hang, such as a store that never answers, done so that a wish to stop is still heard."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from jobs.status import StopReason
from jobs.store import StoreUnavailable

POLL_SECONDS = 0.1

Result = TypeVar("Result")


class Interrupted(Exception):
    """The work was left alone, because the run is to stop."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


class _Work(threading.Thread, Generic[Result]):
    def __init__(self, work: Callable[[], Result], clean_up: Callable[[], None]) -> None:
        super().__init__(name="work", daemon=True)
        self._work = work
        self._clean_up = clean_up
        self.is_abandoned = False
        self.result: Result | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:  # Raised again where it is waited for.
            self.error = error
        if self.is_abandoned:
            self._clean_up()


def run_watched(
    work: Callable[[], Result],
    find_stop_reason: Callable[[], StopReason | None],
    seconds: float,
    *,
    clean_up: Callable[[], None] = lambda: None,
) -> Result:
    """The work's result, or its error. Raises Interrupted when there is a reason to stop, and StoreUnavailable when it
    takes too long: should the work end after all, `clean_up` follows it.
    """
    thread = _Work(work, clean_up)
    thread.start()
    deadline = time.monotonic() + seconds
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            reason = find_stop_reason()
            if reason is not None and thread.is_alive():
                raise Interrupted(reason)
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"no answer within {seconds:.0f} s")
    except BaseException:
        thread.is_abandoned = True
        raise
    if thread.error is not None:
        raise thread.error
    return thread.result  # type: ignore[return-value]  # None is a result, too
