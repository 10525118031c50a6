"""The history checker finds each kind of broken promise: a checker that cannot fail proves nothing."""

from collections.abc import Callable

import pytest

from tests.faults.history import AttemptHistory, History, JobHistory, Promise, check_history, compute_adapter


def build_history() -> History:
    """Of a job whose first attempt was interrupted after its fourth step, and whose second went on after the second."""
    promise = Promise(accepted_at=1.0, num_steps=6)
    first, second = b"step 1\n10%\r20%\nnul \0\n", b"step 3\n"
    job = JobHistory(
        id="job_1",
        status="succeeded",
        promise=promise,
        finished_at=20.0,
        attempts=[
            AttemptHistory(1, 1, None, log=first, log_offset=len(first), stored_log="step 1\n20%\nnul \n"),
            AttemptHistory(2, 2, 2, log=second, log_offset=len(second), stored_log="step 3\n"),
        ],
        statuses=[
            (None, "queued"),
            ("queued", "starting"),
            ("starting", "running"),
            ("running", "queued"),
            ("queued", "starting"),
            ("starting", "running"),
            ("running", "succeeded"),
        ],
        metric_seqs=list(range(1, 9)),
        chunk_seqs=[1, 2],
        checkpoint_steps={2, 6},
        journal=[
            {"time": 2.0, "attempt": 1, "kind": "train starts"},
            {"time": 3.0, "attempt": 1, "kind": "resumed", "step": 0},
            *({"time": 3.0 + n, "attempt": 1, "kind": "step", "step": n} for n in range(1, 5)),
            {"time": 10.0, "attempt": 2, "kind": "train starts"},
            {"time": 11.0, "attempt": 2, "kind": "resumed", "step": 2},
            *({"time": 10.0 + n, "attempt": 2, "kind": "step", "step": n} for n in range(3, 7)),
            {"time": 18.0, "attempt": 2, "kind": "verify starts"},
        ],
        adapter=compute_adapter(6),
    )
    job.attempts[0].metric_steps = [1, 2, 3, 4]
    job.attempts[1].metric_steps = [3, 4, 5, 6]
    return History([job], {"job_1": promise})


def test_a_good_history_breaks_no_promise() -> None:
    assert check_history(build_history()) == []


def _swap_changes(history: History) -> None:
    statuses = history.jobs[0].statuses
    statuses[-1] = ("running", "cancelled")
    statuses.append(("cancelled", "succeeded"))


BREAKS: dict[str, tuple[str, Callable[[History], object]]] = {
    "an accepted job is not there": ("I1", lambda h: h.jobs.clear()),
    "a job was not accepted": ("I1", lambda h: setattr(h.jobs[0], "promise", None)),
    "two processes lived at once": (
        "I2",
        lambda h: h.jobs[0].journal.append({"time": 11.0, "attempt": 2, "kind": "overlap"}),
    ),
    "an epoch did not rise": ("I3", lambda h: setattr(h.jobs[0].attempts[1], "epoch", 1)),
    "a final status changed": ("I4", _swap_changes),
    "a process started after the end": (
        "I5",
        lambda h: h.jobs[0].journal.append({"time": 21.0, "attempt": 2, "kind": "train starts"}),
    ),
    "a process started after the cancel": ("I5", lambda h: setattr(h.jobs[0].promise, "cancelled_at", 9.0)),
    "a log lost a line": ("I6", lambda h: setattr(h.jobs[0].attempts[1], "stored_log", "")),
    "a log lost its end": ("I6", lambda h: setattr(h.jobs[0].attempts[1], "log", b"step 3\nstep 4\n")),
    "a log has a line twice": ("I6", lambda h: setattr(h.jobs[0].attempts[1], "stored_log", 2 * "step 3\n")),
    "a chunk is missing": ("I6", lambda h: setattr(h.jobs[0], "chunk_seqs", [1, 3])),
    "a metric is there twice": ("I6", lambda h: h.jobs[0].attempts[0].metric_steps.insert(1, 1)),
    "a metric was lost": ("I6", lambda h: h.jobs[0].attempts[1].metric_steps.pop()),
    "a metric is missing between others": ("I6", lambda h: h.jobs[0].attempts[1].metric_steps.pop(1)),
    "it went on from no checkpoint": ("I7", lambda h: h.jobs[0].checkpoint_steps.discard(2)),
    "it loaded another checkpoint": (
        "I7",
        lambda h: next(r for r in h.jobs[0].journal if r["kind"] == "resumed" and r["attempt"] == 2).update(step=4),
    ),
    "it repeated a step": (
        "I7",
        lambda h: next(r for r in h.jobs[0].journal if r["kind"] == "step" and r["attempt"] == 2).update(step=2),
    ),
    "a process lived on": ("I8", lambda h: h.jobs[0].attempts[0].strays.append("17 python")),
    "an adapter is that of other steps": ("I9", lambda h: setattr(h.jobs[0], "adapter", compute_adapter(5))),
    "an adapter is damaged": ("I9", lambda h: setattr(h.jobs[0], "adapter", "damaged")),
    "an adapter is missing": ("I9", lambda h: setattr(h.jobs[0], "adapter", None)),
    "a change was not told": ("I10", lambda h: h.jobs[0].statuses.pop(3)),
    "the last change was not told": ("I10", lambda h: h.jobs[0].statuses.pop()),
    "a start was not told": ("I10", lambda h: h.jobs[0].attempts.append(AttemptHistory(3, 3))),
    "the tables break a rule": ("audit", lambda h: h.violations.append("an open attempt has an owner: job_1")),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_broken_promise_is_found(name: str) -> None:
    rule, break_ = BREAKS[name]
    history = build_history()

    break_(history)

    assert rule in {violation.split(":")[0] for violation in check_history(history)}


def test_a_job_that_has_not_ended_is_found() -> None:
    history = build_history()
    job = history.jobs[0]
    job.status, job.finished_at, job.adapter = "running", None, None
    job.statuses.pop()

    assert check_history(history) == ["I1: job_1: it has not ended, it is running"]


def test_a_failed_job_has_no_adapter() -> None:
    history = build_history()
    history.jobs[0].status = "failed"
    history.jobs[0].statuses[-1] = ("running", "failed")

    assert check_history(history) == [f"I9: job_1: it is failed, and its adapter is {compute_adapter(6)}"]


def test_a_job_of_a_request_that_nobody_answered_may_be_there() -> None:
    history = build_history()
    history.jobs[0].promise, history.jobs[0].idempotency_key = None, "k"
    history.promises = {}
    history.unanswered_keys = {"k"}

    assert check_history(history) == []


def test_of_a_lost_attempt_the_end_may_be_missing_and_nothing_else() -> None:
    history = build_history()
    first = history.jobs[0].attempts[0]
    first.is_lost, first.log_offset, first.stored_log = True, 7, "step 1\n"
    first.metric_steps = [1, 2]
    history.jobs[0].metric_seqs = list(range(1, 7))

    assert check_history(history) == []

    first.stored_log = "step"
    assert [violation.split(":")[0] for violation in check_history(history)] == ["I6"]


def test_the_processes_of_a_frozen_machine_could_not_know() -> None:
    history = build_history()
    history.jobs[0].journal.append({"time": 11.0, "attempt": 2, "kind": "overlap"})

    assert check_history(history, frozen={"job_1"}) == []
