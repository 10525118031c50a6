"""Status changes on a real database: who may, who may not, and what happens when many try at once."""

import importlib
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Row, func, select, text, update
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from jobs import audit, lifecycle, repository
from jobs.api_keys import create_key
from jobs.database import Role, Sessions, tenant_transaction
from jobs.errors import Conflict, LeaseLost, LimitReached
from jobs.ids import new_id
from jobs.lifecycle import Claimant, Ending, Lease, News, Retries
from jobs.models import Adapter, ApiKey, Attempt, Dataset, Event, Job, LogChunk, Metric
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import FINAL, TRANSITIONS, DatasetStatus, Fault, JobStatus, StopReason
from jobs.submission import submit_job
from tests.conftest import Servers
from tests.factories import wait_until

OpenSessions = Callable[[Role | None], Sessions]
CHECKPOINT = {"step": 5, "store_key": "x", "num_bytes": 1, "sha256": "", "metrics": {}}


@pytest.fixture
def api(open_sessions: OpenSessions) -> Sessions:
    return open_sessions(Role.API)


@pytest.fixture
def worker(open_sessions: OpenSessions) -> Sessions:
    return open_sessions(Role.WORKER)


@pytest.fixture
def identity(api: Sessions) -> Identity:
    with api.begin() as session:
        key, _ = create_key(session, b"secret", name="test", tenant_id="a")
        return Identity(key.id, "a", is_admin=False)


def add_dataset(api: Sessions, identity: Identity, status: DatasetStatus = DatasetStatus.READY) -> str:
    dataset_id = new_id("ds")
    with tenant_transaction(api, identity.tenant_id) as session:
        session.add(
            Dataset(
                id=dataset_id,
                tenant_id=identity.tenant_id,
                name="rows",
                filename="rows.jsonl",
                status=status,
                store_key="none",
                num_bytes=1,
                sha256="",
                created_by=identity.key_id,
            )
        )
    return dataset_id


def submit(api: Sessions, identity: Identity, settings: Settings, dataset_id: str, **fields: object) -> Row[Any]:
    spec = JobSpec.model_validate({"model": "tiny", "dataset": {"id": dataset_id}, **fields})
    with tenant_transaction(api, identity.tenant_id) as session:
        return submit_job(session, identity, settings, spec)


RETRIES = Retries(max_infra_restarts=2, max_no_progress_restarts=1, backoff_seconds=0)
BROKEN = {"code": "x", "message": "it broke"}


def try_to_claim(
    worker: Sessions, owner: str = "w1", seconds: float = 60, num_gpus: int = 0, **fields: Any
) -> tuple[Job, Lease] | None:
    claimant = Claimant(owner, "host", seconds, **{"host_gpus": num_gpus, "free_gpus": num_gpus, **fields})
    with worker.begin() as session:
        return lifecycle.claim_job(session, claimant)


def claim(worker: Sessions, owner: str = "w1", seconds: float = 60, num_gpus: int = 0) -> tuple[Job, Lease]:
    claimed = try_to_claim(worker, owner, seconds, num_gpus)
    assert claimed is not None
    return claimed


def read(worker: Sessions, job_id: str) -> Job:
    with worker() as session:
        return repository.get_job(session, job_id)


def test_forty_claimants_take_every_job_once(
    api: Sessions, open_sessions: OpenSessions, identity: Identity, settings: Settings
) -> None:
    dataset_id = add_dataset(api, identity)
    wanted = {submit(api, identity, settings, dataset_id).id for _ in range(40)}
    sessions = open_sessions(Role.WORKER)
    taken: list[str] = []

    def claim_all(owner: str) -> None:
        while True:
            claimed = try_to_claim(sessions, owner)
            if claimed is None:
                return
            taken.append(claimed[0].id)

    threads = [threading.Thread(target=claim_all, args=(f"w{n}",)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(taken) == sorted(wanted)


def test_the_highest_priority_comes_first_then_the_oldest(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    dataset_id = add_dataset(api, identity)
    old, urgent, new = (submit(api, identity, settings, dataset_id, priority=p).id for p in (0, 5, 0))
    with tenant_transaction(api, "a") as session:
        positions = [repository.get_job_view(session, job_id).queue_position for job_id in (old, urgent, new)]

    order = [claim(worker)[0].id for _ in range(3)]

    assert order == [urgent, old, new]
    assert positions == [2, 1, 3]


def test_a_worker_takes_only_what_fits_on_its_gpus(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    submit(api, identity, settings, add_dataset(api, identity), resources={"gpus": 2})

    assert try_to_claim(worker, "small", num_gpus=1) is None
    assert claim(worker, num_gpus=2)[0].num_gpus == 2


def test_an_old_owner_changes_nothing(api: Sessions, worker: Sessions, identity: Identity, settings: Settings) -> None:
    """Its lease ran out, another worker has the job: none of the old one's writes may count."""
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    _, old = claim(worker, "old", seconds=0)
    with worker.begin() as session:
        lifecycle.reap_lost_jobs(session, RETRIES)
    _, new = claim(worker, "new")
    adapter = Adapter(job_id=job_id, tenant_id="a", store_key="x", num_bytes=1, sha256="")
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
            adapter = Adapter(job_id=job_id, tenant_id="a", store_key="x", num_bytes=1, sha256="")
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


def test_the_database_refuses_an_owner_without_a_lease(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id

    with pytest.raises(IntegrityError), worker.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_owner="w1"))
    with pytest.raises(IntegrityError), worker.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(status=JobStatus.SUCCEEDED))


def test_the_api_sees_no_row_without_its_tenant(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    """Row-level security alone: these statements have no filter of their own."""
    submit(api, identity, settings, add_dataset(api, identity))

    with api() as session:
        assert session.scalars(select(Job)).all() == []
    with tenant_transaction(api, "b") as session:
        assert session.scalars(select(Job)).all() == []
        assert session.execute(update(Job).values(name="taken").returning(Job.id)).all() == []
    with tenant_transaction(api, "a") as session:
        assert len(session.scalars(select(Job)).all()) == 1
    with pytest.raises(ProgrammingError), tenant_transaction(api, "a") as session:  # At the commit.
        session.add(Event(id=new_id("evt"), tenant_id="b", job_id="x", attempt=0, type="", message="", data={}))


def test_no_role_of_the_service_is_a_superuser(open_sessions: OpenSessions) -> None:
    for role in Role:
        with open_sessions(role)() as session:
            row = session.execute(
                text("SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user")
            ).one()
        assert tuple(row) == (role.value, False, False)


def test_a_worker_may_not_delete_and_the_api_may_not_write_metrics(
    api: Sessions, worker: Sessions, identity: Identity
) -> None:
    for sessions, statement in [
        (worker, "DELETE FROM jobs"),
        (worker, "DELETE FROM events"),
        (worker, "SELECT * FROM api_keys"),
        (api, "DELETE FROM jobs"),
        (api, "UPDATE events SET message = ''"),
        (api, "INSERT INTO adapters (job_id, tenant_id, store_key, num_bytes, sha256) VALUES ('', 'a', '', 1, '')"),
    ]:
        with pytest.raises(ProgrammingError, match="permission denied"), tenant_transaction(sessions, "a") as session:
            session.execute(text(statement))


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


def add_key(api: Sessions, **limits: int) -> Identity:
    with api.begin() as session:
        key, _ = create_key(session, b"secret", name="another", tenant_id="a")
    with api.begin() as session:
        for name, value in limits.items():
            setattr(session.get_one(ApiKey, key.id), name, value)
    return Identity(key.id, "a", is_admin=False, max_queued=limits.get("max_queued"))


def test_keys_take_turns(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    """However many jobs one has queued first."""
    dataset_id = add_dataset(api, identity)
    mine = [submit(api, identity, settings, dataset_id).id for _ in range(3)]
    other = add_key(api)
    theirs = [submit(api, other, settings, dataset_id).id for _ in range(2)]
    waiting = [*mine, *theirs]
    with tenant_transaction(api, "a") as session:
        places = {job_id: repository.get_job_view(session, job_id).queue_position for job_id in waiting}

    order = [claim(worker)[0].id for _ in range(5)]

    assert order == [mine[0], theirs[0], mine[1], theirs[1], mine[2]]
    assert sorted(waiting, key=lambda job_id: places[job_id]) == order


def test_a_key_runs_no_more_jobs_than_it_may(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    dataset_id = add_dataset(api, identity)
    limited = add_key(open_sessions(None), max_running=1)
    first, second = (submit(api, limited, settings, dataset_id, priority=9).id for _ in range(2))
    free = submit(api, identity, settings, dataset_id).id

    (job, lease), (other, _) = claim(worker), claim(worker)
    assert (job.id, other.id) == (first, free)
    assert try_to_claim(worker) is None
    with worker.begin() as session:
        lifecycle.fail(session, lease, Ending(BROKEN, Fault.USER))
    assert claim(worker)[0].id == second


def test_a_key_queues_no_more_jobs_than_it_may(
    api: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    """Nor when many try at once."""
    dataset_id = add_dataset(api, identity)
    limited = add_key(open_sessions(None), max_queued=3)
    refusals: list[str] = []

    def try_to_submit() -> None:
        try:
            submit(api, limited, settings, dataset_id)
        except LimitReached as refusal:
            refusals.append(refusal.code)

    threads = [threading.Thread(target=try_to_submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert refusals == ["queue_limit_reached"] * 5


def test_a_large_job_is_passed_by_until_it_has_waited_long(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    dataset_id = add_dataset(api, identity)
    large = submit(api, identity, settings, dataset_id, resources={"gpus": 4}, priority=1).id
    small, smaller = (submit(api, identity, settings, dataset_id, resources={"gpus": n}).id for n in (2, 1))

    claimed = try_to_claim(worker, host_gpus=4, free_gpus=2)
    assert claimed is not None
    assert claimed[0].id == small
    assert try_to_claim(worker, host_gpus=4, free_gpus=2, patience_seconds=0) is None
    on_a_smaller_host = try_to_claim(worker, host_gpus=2, free_gpus=2, patience_seconds=0)
    assert on_a_smaller_host is not None
    assert on_a_smaller_host[0].id == smaller
    assert claim(worker, num_gpus=4)[0].id == large


def test_a_job_waits_out_its_back_off(api: Sessions, worker: Sessions, identity: Identity, settings: Settings) -> None:
    submit(api, identity, settings, add_dataset(api, identity))
    slow = Retries(max_infra_restarts=9, max_no_progress_restarts=9, backoff_seconds=100)
    waits = []
    for _ in range(3):
        _, lease = claim(worker)
        with worker.begin() as session:
            lifecycle.give_back(session, lease, Ending(BROKEN, Fault.INFRASTRUCTURE), slow)
        assert try_to_claim(worker) is None
        with worker.begin() as session:
            job = repository.get_job(session, lease.job_id)
            waits.append(round((job.not_before - job.queued_at).total_seconds()))
            job.not_before = func.now()

    assert waits == [100, 200, 400]


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


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE jobs SET status = 'running'", "cannot go from queued to running"),
        ("UPDATE jobs SET status = 'failed', finished_at = now(); UPDATE jobs SET reason = '{}'", "is final"),
        ("UPDATE jobs SET lease_epoch = lease_epoch - 1", "higher epoch"),
        (
            "UPDATE jobs SET status = 'starting', lease_owner = 'w', lease_expires_at = now(), heartbeat_at = now()",
            "higher epoch",
        ),
    ],
)
def test_the_database_refuses_what_must_not_be(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, statement: str, words: str
) -> None:
    submit(api, identity, settings, add_dataset(api, identity))

    with pytest.raises(IntegrityError, match=words), worker.begin() as session:
        session.execute(text(statement))


def test_the_database_takes_no_second_open_attempt(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    claim(worker)

    with pytest.raises(IntegrityError, match="uq_attempts_open"), worker.begin() as session:
        session.add(Attempt(job_id=job_id, number=2, tenant_id="a", lease_epoch=2, worker_id="w", hostname=""))


def test_the_database_knows_the_same_changes_as_the_code(servers: Servers) -> None:
    """Each of the possible changes is legal in both or in neither."""
    migration = importlib.import_module("migrations.versions.2026_11_22_1700_recover_jobs")

    legal = {old.value: tuple(sorted(new)) for old, new in TRANSITIONS.items() if new}
    assert {old: tuple(sorted(new)) for old, new in migration.LEGAL_CHANGES.items()} == legal


def test_nothing_of_all_this_breaks_a_rule_of_the_tables(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    dataset_id = add_dataset(api, identity)
    submit(api, identity, settings, dataset_id)
    claim(worker)
    with worker.begin() as session:
        assert audit.find_violations(session) == []
        session.execute(text("UPDATE attempts SET worker_id = 'somebody else'"))
        rules = [violation.rule for violation in audit.find_violations(session)]
    assert rules == ["a job that has an owner has an open attempt of that owner and epoch"]


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
    with worker.begin() as session:
        lifecycle.renew_lease(session, new)


def test_a_keys_limit_holds_when_two_claim_at_once(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    """For different jobs. The second waits for the first one's end, and then sees what that took."""
    dataset_id = add_dataset(api, identity)
    limited = add_key(open_sessions(None), max_running=1)
    for num_gpus in (1, 0):
        submit(api, limited, settings, dataset_id, resources={"gpus": num_gpus}, priority=num_gpus)
    found: list[object] = []
    second = threading.Thread(target=lambda: found.append(try_to_claim(worker, "second")))

    with worker.begin() as session:
        assert lifecycle.claim_job(session, Claimant("first", "host", 60, host_gpus=1, free_gpus=1)) is not None
        second.start()
        second.join(timeout=0.5)
        assert second.is_alive()
    second.join()

    assert found == [None]


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


def test_a_resumed_job_counts_for_its_keys_limit(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    dataset_id = add_dataset(api, identity)
    limited = add_key(open_sessions(None), max_queued=1)
    paused = submit(api, limited, settings, dataset_id).id
    with tenant_transaction(api, "a") as session:
        lifecycle.request_pause(session, paused)
    submit(api, limited, settings, dataset_id)

    with pytest.raises(LimitReached), tenant_transaction(api, "a") as session:
        lifecycle.resume(session, paused)
    claim(worker)
    with tenant_transaction(api, "a") as session:
        assert lifecycle.resume(session, paused).status == JobStatus.QUEUED
