"""Status changes on a real database: who may, who may not, and what happens when many try at once."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from jobs import lifecycle, repository
from jobs.database import Sessions, tenant_transaction
from jobs.errors import Conflict, LeaseLost
from jobs.ids import new_id
from jobs.lifecycle import Ending, News
from jobs.models import Adapter, Attempt, Event, LogChunk, Metric
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import FINAL, TRANSITIONS, DatasetStatus, Fault, JobStatus, StopReason
from jobs.submission import submit_job
from tests.factories import wait_until
from tests.integration.rows import (
    BROKEN,
    CHECKPOINT,
    RETRIES,
    OpenSessions,
    add_dataset,
    claim,
    read,
    submit,
    try_to_claim,
)


def test_an_old_owner_changes_nothing(api: Sessions, worker: Sessions, identity: Identity, settings: Settings) -> None:
    """Its lease ran out, another worker has the job: none of the old one's writes may count."""
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    _, old = claim(worker, "old", seconds=0)
    with worker.begin() as session:
        lifecycle.reap_lost_jobs(session, RETRIES)
    _, new = claim(worker, "new")
    adapter = Adapter(job_id=job_id, tenant_id="a", model="tiny", store_key="x", num_bytes=1, sha256="")
    writes: list[Callable[[Session], object]] = [
        lambda s: lifecycle.store_news(s, old, News(log_chunks=[{"seq": 1, "num_lines": 1, "text": "stale"}])),
        lambda s: lifecycle.renew_lease(s, old),
        lambda s: lifecycle.find_wish(s, old),
        lambda s: lifecycle.begin_stopping(s, old, StopReason.STALLED),
        lambda s: lifecycle.record_resume(s, old, 5),
        lambda s: lifecycle.store_checkpoint(s, old, CHECKPOINT),
        lambda s: lifecycle.remove_checkpoints(s, old, ["ckpt_1"]),
        lambda s: lifecycle.note(s, old, "x", "stale"),
        lambda s: lifecycle.succeed(s, old, adapter, {}),
        lambda s: lifecycle.fail(s, old, Ending(BROKEN)),
        lambda s: lifecycle.cancel(s, old, Ending()),
        lambda s: lifecycle.give_back(s, old, Ending(BROKEN, Fault.NONE), RETRIES),
    ]

    for write in writes:
        with pytest.raises(LeaseLost), worker.begin() as session:
            write(session)

    job = read(worker, job_id)
    assert (job.status, job.lease_owner, job.attempt) == (JobStatus.STARTING, "new", 2)
    with worker() as session:
        assert session.scalars(select(LogChunk)).all() == []
    with worker.begin() as session:
        lifecycle.store_news(session, new, News())
        assert lifecycle.renew_lease(session, new) is None


def test_the_same_news_sent_twice_is_stored_once(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    submit(api, identity, settings, add_dataset(api, identity))
    _, lease = claim(worker)
    news = News(
        progress={"step": 1},
        latest_metrics={"loss": 2.0},
        events=[{"id": new_id("evt"), "type": "phase", "message": "training", "data": {}}],
        metrics=[{"seq": 1, "step": 1, "epoch": 0.1, "tokens": 5, "values": {"loss": 2.0}}],
        log_chunks=[{"seq": 1, "num_lines": 1, "text": "hello\n"}],
    )

    for _ in range(2):
        with worker.begin() as session:
            lifecycle.store_news(session, lease, news)

    with worker() as session:
        counts = [session.scalar(select(func.count()).select_from(table)) for table in (Metric, LogChunk)]
        phases = session.scalars(select(Event).where(Event.type == "phase")).all()
    assert counts == [1, 1]
    assert len(phases) == 1


def test_a_lost_job_is_queued_again_and_fails_after_the_last_attempt(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    seen = []
    for _ in range(3):
        claim(worker, seconds=0)
        with worker.begin() as session:
            lifecycle.reap_lost_jobs(session, RETRIES)
        seen.append(read(worker, job_id).status)

    job = read(worker, job_id)
    assert seen == [JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.FAILED]
    assert job.reason is not None
    assert (job.reason["code"], job.reason["last_code"]) == ("too_many_restarts", "worker_lost")
    with worker() as session:
        outcomes = session.scalars(select(Attempt.outcome).order_by(Attempt.number)).all()
    assert outcomes == ["queued", "queued", "failed"]


def test_a_job_that_cannot_be_taken_from_its_lost_worker_holds_up_no_other(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    dataset_id = add_dataset(api, identity)
    stuck, free = (submit(api, identity, settings, dataset_id).id for _ in range(2))
    for _ in range(2):
        claim(worker, seconds=0)
    with open_sessions(None).begin() as session:
        session.execute(text(f"ALTER TABLE jobs ADD CHECK (id <> '{stuck}' OR status = 'starting')"))

    with worker.begin() as session:
        reaped = lifecycle.reap_lost_jobs(session, RETRIES)

    assert [job.id for job in reaped] == [free]
    assert (read(worker, stuck).status, read(worker, free).status) == (JobStatus.STARTING, JobStatus.QUEUED)


def test_a_living_lease_is_not_reaped(api: Sessions, worker: Sessions, identity: Identity, settings: Settings) -> None:
    submit(api, identity, settings, add_dataset(api, identity))
    claim(worker, seconds=60)

    with worker.begin() as session:
        assert lifecycle.reap_lost_jobs(session, RETRIES) == []


@pytest.mark.parametrize("end", ["succeed", "fail", "give_back", "reap"])
def test_a_wish_to_cancel_wins_over_any_other_end(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, end: str
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    _, lease = claim(worker, seconds=0 if end == "reap" else 60)
    with tenant_transaction(api, "a") as session:
        lifecycle.request_cancel(session, job_id)

    with worker.begin() as session:
        if end == "succeed":
            adapter = Adapter(job_id=job_id, tenant_id="a", model="tiny", store_key="x", num_bytes=1, sha256="")
            lifecycle.succeed(session, lease, adapter, {"ok": True})
        elif end == "reap":
            lifecycle.reap_lost_jobs(session, RETRIES)
        elif end == "fail":
            lifecycle.fail(session, lease, Ending(BROKEN, Fault.USER))
        else:
            lifecycle.give_back(session, lease, Ending(BROKEN, Fault.INFRASTRUCTURE), RETRIES)

    assert read(worker, job_id).status == JobStatus.CANCELLED
    with worker() as session:
        assert session.get(Adapter, job_id) is None


def test_cancelling_twice_is_cancelling_once_and_a_final_job_refuses(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    _, lease = claim(worker)
    for _ in range(2):
        with tenant_transaction(api, "a") as session:
            lifecycle.request_cancel(session, job_id)
    with worker.begin() as session:
        assert lifecycle.find_wish(session, lease) == StopReason.CANCELLED
        assert lifecycle.renew_lease(session, lease) == StopReason.CANCELLED
        lifecycle.cancel(session, lease, Ending())

    with pytest.raises(Conflict), tenant_transaction(api, "a") as session:
        lifecycle.request_cancel(session, job_id)
    with worker() as session:
        wishes = session.scalars(select(Event).where(Event.type == "cancel_requested")).all()
    assert len(wishes) == 1


@pytest.mark.parametrize(
    ("ok", "expected"), [(True, JobStatus.QUEUED), (False, JobStatus.FAILED)], ids=["passes", "is rejected"]
)
def test_a_job_goes_on_when_its_dataset(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, ok: bool, expected: JobStatus
) -> None:
    dataset_id = add_dataset(api, identity, DatasetStatus.VALIDATING)
    job = submit(api, identity, settings, dataset_id)
    assert job.status == JobStatus.VALIDATING
    with worker.begin() as session:
        assert lifecycle.claim_dataset(session, "w1", 60) is not None
        assert lifecycle.claim_dataset(session, "w2", 60) is None

    with pytest.raises(LeaseLost), worker.begin() as session:
        lifecycle.finish_dataset(session, dataset_id, "w2", {"ok": True, "rows": 1})
    with worker.begin() as session:
        lifecycle.finish_dataset(session, dataset_id, "w1", {"ok": ok, "rows": 1})

    assert read(worker, job.id).status == expected


def test_a_job_is_not_forgotten_when_the_check_ends_while_it_is_submitted(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    """The check's end waits for the submission's transaction, and then sees the job."""
    dataset_id = add_dataset(api, identity, DatasetStatus.VALIDATING)
    with worker.begin() as session:
        lifecycle.claim_dataset(session, "w1", 60)

    def finish_check() -> None:
        with worker.begin() as session:
            lifecycle.finish_dataset(session, dataset_id, "w1", {"ok": True, "rows": 1})

    check = threading.Thread(target=finish_check)
    spec = JobSpec.model_validate({"model": "tiny", "dataset": {"id": dataset_id}})
    with tenant_transaction(api, "a") as session:
        repository.get_submission_facts(session, dataset_id, None, None)  # As a submission begins.
        check.start()
        check.join(timeout=0.5)
        assert check.is_alive()
        job = submit_job(session, identity, settings, spec)
    check.join()

    assert read(worker, job.id).status == JobStatus.QUEUED


def test_a_final_status_has_no_way_out() -> None:
    assert all(not TRANSITIONS[status] for status in FINAL)
    assert set(TRANSITIONS) == set(JobStatus)


def test_attempts_record_who_tried(api: Sessions, worker: Sessions, identity: Identity, settings: Settings) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    _, lease = claim(worker, "w7")
    with worker.begin() as session:
        lifecycle.fail(session, lease, Ending(BROKEN, Fault.USER, exit_code=-9))

    with worker() as session:
        attempt = session.get_one(Attempt, (job_id, 1))
    assert (attempt.worker_id, attempt.outcome, attempt.exit_code) == ("w7", "failed", -9)
    assert attempt.ended_at is not None
    assert attempt.ended_at - attempt.started_at < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("fault", "num_attempts", "code"),
    [(Fault.INFRASTRUCTURE, 3, "too_many_restarts"), (Fault.TRAINING, 2, "no_progress"), (Fault.NONE, None, None)],
)
def test_a_job_is_tried_again_as_often_as_its_faults_allow(
    api: Sessions,
    worker: Sessions,
    identity: Identity,
    settings: Settings,
    fault: Fault,
    num_attempts: int | None,
    code: str | None,
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    attempts = 0
    while read(worker, job_id).status == JobStatus.QUEUED and attempts < 6:
        _, lease = claim(worker)
        attempts += 1
        with worker.begin() as session:
            lifecycle.give_back(session, lease, Ending(BROKEN, fault), RETRIES)

    job = read(worker, job_id)
    if code is None:
        assert (attempts, job.status, job.infra_restarts) == (6, JobStatus.QUEUED, 0)
    else:
        assert job.reason is not None
        assert (attempts, job.status, job.reason["code"]) == (num_attempts, JobStatus.FAILED, code)


def test_a_checkpoint_between_two_crashes_is_progress(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    for step in (5, 10):
        _, lease = claim(worker)
        with worker.begin() as session:
            lifecycle.store_checkpoint(session, lease, CHECKPOINT | {"step": step})
            lifecycle.give_back(session, lease, Ending(BROKEN, Fault.TRAINING), RETRIES)
        assert read(worker, job_id).no_progress_restarts == 1

    assert read(worker, job_id).status == JobStatus.QUEUED


def test_a_pause_takes_a_waiting_job_out_of_the_queue_and_a_resume_puts_it_back(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    for _ in range(2):
        with tenant_transaction(api, "a") as session:
            assert lifecycle.request_pause(session, job_id).status == JobStatus.PAUSED
    assert try_to_claim(worker) is None

    with tenant_transaction(api, "a") as session:
        lifecycle.resume(session, job_id)
    assert claim(worker)[0].id == job_id


@pytest.mark.parametrize("end", ["give back", "reap"])
def test_a_pausing_job_is_paused_however_its_attempt_ends(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, end: str
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    _, lease = claim(worker, seconds=0 if end == "reap" else 60)
    with tenant_transaction(api, "a") as session:
        assert lifecycle.request_pause(session, job_id).status == JobStatus.PAUSING
    with worker.begin() as session:
        assert lifecycle.find_wish(session, lease) == StopReason.PAUSED
        lifecycle.begin_stopping(session, lease, StopReason.WORKER_STOPPED)
    with pytest.raises(Conflict, match="still being paused"), tenant_transaction(api, "a") as session:
        lifecycle.resume(session, job_id)

    with worker.begin() as session:
        if end == "reap":
            lifecycle.reap_lost_jobs(session, RETRIES)
        else:
            lifecycle.give_back(session, lease, Ending(BROKEN, Fault.NONE), RETRIES)

    assert read(worker, job_id).status == JobStatus.PAUSED


def test_a_time_limit_counts_the_time_of_all_attempts(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity), resources={"time_limit": 100}).id
    _, lease = claim(worker)
    with worker.begin() as session:
        assert lifecycle.renew_lease(session, lease) is None
        session.execute(update(Attempt).values(started_at=func.now() - timedelta(seconds=99.9)))
        lifecycle.give_back(session, lease, Ending(BROKEN, Fault.NONE), RETRIES)

    _, lease = claim(worker)

    def ask() -> StopReason | None:
        with worker.begin() as session:
            return lifecycle.renew_lease(session, lease)

    assert wait_until(ask, seconds=5) == StopReason.TIME_LIMIT
    assert read(worker, job_id).deadline_at is not None


def test_an_old_attempt_of_the_same_worker_changes_nothing(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    """The owner is the same; only the epoch tells them apart."""
    submit(api, identity, settings, add_dataset(api, identity))
    _, old = claim(worker, "w1", seconds=0)
    with worker.begin() as session:
        lifecycle.reap_lost_jobs(session, RETRIES)
    _, new = claim(worker, "w1")

    with pytest.raises(LeaseLost), worker.begin() as session:
        lifecycle.store_news(session, old, News(log_chunks=[{"seq": 1, "num_lines": 1, "text": "stale"}]))
    with pytest.raises(LeaseLost), worker.begin() as session:
        lifecycle.renew_lease(session, old)
    with pytest.raises(LeaseLost), worker.begin() as session:
        lifecycle.note(session, old, "stale", "of the old attempt")
    with worker.begin() as session:
        lifecycle.renew_lease(session, new)


def test_a_resumed_job_is_not_forgotten_when_a_check_ends_meanwhile(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    """The check's end waits for the resume, and then sees the job."""
    dataset_id = add_dataset(api, identity, DatasetStatus.VALIDATING)
    job_id = submit(api, identity, settings, dataset_id).id
    with worker.begin() as session:
        lifecycle.claim_dataset(session, "w1", 60)
    with tenant_transaction(api, "a") as session:
        lifecycle.request_pause(session, job_id)

    def finish_check() -> None:
        with worker.begin() as session:
            lifecycle.finish_dataset(session, dataset_id, "w1", {"ok": True, "rows": 1})

    check = threading.Thread(target=finish_check)
    with tenant_transaction(api, "a") as session:
        assert lifecycle.resume(session, job_id).status == JobStatus.VALIDATING
        check.start()
        check.join(timeout=0.5)
        assert check.is_alive()
    check.join()

    assert read(worker, job_id).status == JobStatus.QUEUED
