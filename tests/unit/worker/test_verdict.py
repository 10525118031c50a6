"""What the end of a trainer means."""

import signal

import pytest

from jobs.status import Fault, StopReason
from trainer_core.reporting import ErrorEvent
from worker.launcher import Exit
from worker.verdict import Fate, judge

OOM = Exit(-signal.SIGKILL, oom_kills=1)


@pytest.mark.parametrize(
    ("ending", "code", "fault", "word"),
    [
        (Exit(1), "trainer_died", Fault.USER, "exit code 1"),
        (Exit(-9), "trainer_killed", Fault.INFRASTRUCTURE, "SIGKILL"),
        (Exit(137), "trainer_killed", Fault.INFRASTRUCTURE, "SIGKILL"),
        (Exit(247), "trainer_killed", Fault.INFRASTRUCTURE, "SIGKILL"),
        (Exit(-15), "trainer_killed", Fault.INFRASTRUCTURE, "SIGTERM"),
        (Exit(-11), "trainer_crashed", Fault.TRAINING, "SIGSEGV"),
        (Exit(256 - signal.SIGABRT), "trainer_crashed", Fault.TRAINING, "SIGABRT"),
        (OOM, "out_of_memory", Fault.USER, "kernel"),
        (Exit(247, oom_kills=1), "out_of_memory", Fault.USER, "kernel"),
        (Exit(-11, oom_kills=1), "trainer_crashed", Fault.TRAINING, "SIGSEGV"),
        (Exit(None, oom_kills=1), "runner_lost", Fault.INFRASTRUCTURE, "from outside"),
        (Exit(None), "runner_lost", Fault.INFRASTRUCTURE, "from outside"),
        (Exit(75), "trainer_killed", Fault.INFRASTRUCTURE, "other than its worker"),
        (Exit(75, ended_by="deadline"), "database_lost", Fault.NONE, "database"),
        (Exit(-9, ended_by="deadline"), "database_lost", Fault.NONE, "database"),
    ],
)
def test_an_exit_without_a_word_is_explained(ending: Exit, code: str, fault: Fault, word: str) -> None:
    verdict = judge(ending, None, None, ["last line"])

    assert verdict.fate == (Fate.FAIL if fault == Fault.USER else Fate.GIVE_BACK)
    assert verdict.ending.reason is not None
    assert (verdict.ending.reason["code"], verdict.ending.fault) == (code, fault)
    assert word in verdict.ending.reason["message"]
    if code != "database_lost":
        assert verdict.ending.reason["log_tail"] == "last line"


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("loss_not_finite", Fault.USER),
        ("out_of_memory", Fault.USER),
        ("rank_died", Fault.TRAINING),
        ("device_failed", Fault.TRAINING),
        ("disk_full", Fault.INFRASTRUCTURE),
    ],
)
def test_a_trainers_own_words_decide_whether_it_is_tried_again(code: str, fault: Fault) -> None:
    verdict = judge(Exit(1), None, ErrorEvent(code=code, message="it went wrong"), [])

    assert verdict.ending.fault == fault
    assert verdict.ending.reason is not None
    assert verdict.ending.reason["code"] == code


def test_a_rank_that_the_kernel_ended_for_its_memory_is_told_as_that() -> None:
    verdict = judge(Exit(1, oom_kills=1), None, ErrorEvent(code="rank_died", message="a rank ended"), [])

    assert verdict.ending.reason is not None
    assert verdict.ending.reason["code"] == "out_of_memory"


@pytest.mark.parametrize(
    ("stop", "fate", "fault"),
    [
        (StopReason.CANCELLED, Fate.CANCEL, None),
        (StopReason.PAUSED, Fate.GIVE_BACK, Fault.NONE),
        (StopReason.WORKER_STOPPED, Fate.GIVE_BACK, Fault.NONE),
        (StopReason.DATABASE_LOST, Fate.GIVE_BACK, Fault.NONE),
        (StopReason.DISK_FULL, Fate.GIVE_BACK, Fault.INFRASTRUCTURE),
        (StopReason.STALLED, Fate.GIVE_BACK, Fault.TRAINING),
        (StopReason.TIME_LIMIT, Fate.FAIL, Fault.USER),
    ],
)
@pytest.mark.parametrize("ending", [Exit(75, ended_by="order"), Exit(-9, ended_by="order"), Exit(None)])
def test_whoever_was_stopped_is_judged_by_why(ending: Exit, stop: StopReason, fate: Fate, fault: Fault | None) -> None:
    verdict = judge(ending, stop, None, [])

    assert (verdict.fate, verdict.ending.fault) == (fate, fault)


@pytest.mark.parametrize("stop", [None, StopReason.PAUSED, StopReason.WORKER_STOPPED])
def test_a_run_that_was_done_before_it_could_be_stopped_has_succeeded(stop: StopReason | None) -> None:
    assert judge(Exit(0), stop, None, []).fate == Fate.SUCCEED


def test_a_run_that_was_done_when_it_was_cancelled_is_cancelled() -> None:
    assert judge(Exit(0), StopReason.CANCELLED, None, []).fate == Fate.CANCEL
