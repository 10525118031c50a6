"""Status changes on a real database: who may, who may not, and what happens when many try at once."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Row, func, select, text, update
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from jobs import lifecycle, repository
from jobs.api_keys import create_key
from jobs.database import Role, Sessions, tenant_transaction
from jobs.errors import Conflict, LeaseLost
from jobs.ids import new_id
from jobs.lifecycle import Lease, News
from jobs.models import Adapter, Attempt, Dataset, Event, Job, LogChunk, Metric
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import FINAL, TRANSITIONS, DatasetStatus, JobStatus
from jobs.submission import submit_job

OpenSessions = Callable[[Role | None], Sessions]


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


def claim(worker: Sessions, owner: str = "w1", seconds: float = 60, num_gpus: int = 0) -> tuple[Job, Lease]:
    with worker.begin() as session:
        claimed = lifecycle.claim_job(session, owner, seconds, num_gpus)
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
            with sessions.begin() as session:
                claimed = lifecycle.claim_job(session, owner, 60, 0)
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

    with worker.begin() as session:
        assert lifecycle.claim_job(session, "small", 60, num_gpus=1) is None
    assert claim(worker, num_gpus=2)[0].num_gpus == 2


def test_an_old_owner_changes_nothing(api: Sessions, worker: Sessions, identity: Identity, settings: Settings) -> None:
    """Its lease ran out, another worker has the job: none of the old one's writes may count."""
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    _, old = claim(worker, "old", seconds=0)
    with worker.begin() as session:
        lifecycle.reap_lost_jobs(session, max_attempts=3)
    _, new = claim(worker, "new")
    adapter = Adapter(job_id=job_id, tenant_id="a", store_key="x", num_bytes=1, sha256="")
    writes: list[Callable[[Session], object]] = [
        lambda s: lifecycle.store_news(s, old, News(log_chunks=[{"seq": 1, "num_lines": 1, "text": "stale"}])),
        lambda s: lifecycle.begin_stopping(s, old, "x"),
        lambda s: lifecycle.succeed(s, old, adapter, {}),
        lambda s: lifecycle.fail(s, old, {"code": "x", "message": "x"}),
        lambda s: lifecycle.cancel(s, old),
        lambda s: lifecycle.requeue(s, old, {"code": "x", "message": "x"}),
    ]

    for write in writes:
        with pytest.raises(LeaseLost), worker.begin() as session:
            write(session)

    job = read(worker, job_id)
    assert (job.status, job.lease_owner, job.attempt) == (JobStatus.STARTING, "new", 2)
    with worker() as session:
        assert session.scalars(select(LogChunk)).all() == []
    with worker.begin() as session:
        assert lifecycle.store_news(session, new, News()) is False


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
            lifecycle.reap_lost_jobs(session, max_attempts=3)
        seen.append(read(worker, job_id).status)

    job = read(worker, job_id)
    assert seen == [JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.FAILED]
    assert job.reason is not None
    assert job.reason["code"] == "worker_lost"
    with worker() as session:
        outcomes = session.scalars(select(Attempt.outcome).order_by(Attempt.number)).all()
    assert outcomes == ["queued", "queued", "failed"]


def test_a_living_lease_is_not_reaped(api: Sessions, worker: Sessions, identity: Identity, settings: Settings) -> None:
    submit(api, identity, settings, add_dataset(api, identity))
    claim(worker, seconds=60)

    with worker.begin() as session:
        assert lifecycle.reap_lost_jobs(session, max_attempts=3) == []


@pytest.mark.parametrize("end", ["succeed", "fail", "requeue", "reap"])
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
            lifecycle.reap_lost_jobs(session, max_attempts=3)
        else:
            getattr(lifecycle, end)(session, lease, {"code": "x", "message": "x"})

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
        assert lifecycle.store_news(session, lease, News()) is True
        lifecycle.cancel(session, lease)

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
    with tenant_transaction(api, "a") as session:
        spec = JobSpec.model_validate({"model": "tiny", "dataset": {"id": dataset_id}})
        job = submit_job(session, identity, settings, spec)
        check.start()
        check.join(timeout=0.5)
        assert check.is_alive()
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
        lifecycle.fail(session, lease, {"code": "x", "message": "broke"}, exit_code=-9)

    with worker() as session:
        attempt = session.get_one(Attempt, (job_id, 1))
    assert (attempt.worker_id, attempt.outcome, attempt.exit_code) == ("w7", "failed", -9)
    assert attempt.ended_at is not None
    assert attempt.ended_at - attempt.started_at < timedelta(minutes=1)
