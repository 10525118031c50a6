"""Work that may hang is waited for no longer than there is reason to."""

import threading

import pytest

from jobs.status import StopReason
from jobs.store import StoreUnavailable
from worker.watched import Interrupted, run_watched


def never() -> None:
    threading.Event().wait()


def test_the_works_result_comes_back() -> None:
    assert run_watched(lambda: 7, lambda: None, 60) == 7


def test_the_works_error_comes_back() -> None:
    with pytest.raises(ZeroDivisionError):
        run_watched(lambda: 1 / 0, lambda: None, 60)


def test_a_wish_to_stop_is_heard_while_the_work_hangs() -> None:
    with pytest.raises(Interrupted) as interruption:
        run_watched(never, lambda: StopReason.CANCELLED, 60)

    assert interruption.value.reason == StopReason.CANCELLED


def test_what_was_left_alone_is_cleaned_up_after_should_it_end() -> None:
    """Else private files that it writes late would stay."""
    go_on, cleaned = threading.Event(), threading.Event()

    with pytest.raises(Interrupted):
        run_watched(go_on.wait, lambda: StopReason.CANCELLED, 60, clean_up=cleaned.set)
    assert not cleaned.is_set()
    go_on.set()

    assert cleaned.wait(10)


def test_what_hangs_for_too_long_is_left_alone() -> None:
    with pytest.raises(StoreUnavailable, match="no answer"):
        run_watched(never, lambda: None, 0.2)
