"""A job's whole life in any order of events: what a small model in Python predicts is what the database says.

Clients, workers, a worker that comes back after it lost its job, the reconciler and the check of datasets take turns at
random. Hypothesis looks for an order that breaks a rule, and shows the shortest one that it finds.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, note
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, integers
from sqlalchemy import Row, func, select, text, update
from sqlalchemy.orm import Session

from jobs import invariants, lifecycle
from jobs.api_keys import create_key
from jobs.database import Role, Sessions, tenant_transaction
from jobs.errors import Conflict, InvalidRequest, LeaseLost
from jobs.ids import new_id
from jobs.lifecycle import Claimant, Ending, Lease, News, Retries
from jobs.models import Adapter, Attempt, Dataset, Event, Job
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import FINAL, OWNED, TRANSITIONS, DatasetStatus, Fault, JobStatus, StopReason
from jobs.submission import retry_job, submit_job

S = JobStatus
RETRIES = Retries(max_infra_restarts=2, max_no_progress_restarts=1, backoff_seconds=0)
BROKEN = {"code": "x", "message": "it broke"}
TENANT = "a"
LIMITS = (None, 1, 2)
"""As many jobs of each key run at once."""

SEARCH = hypothesis_settings(
    max_examples=25,
    stateful_step_count=80,
    deadline=None,
    derandomize="CI" in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


HAPPENINGS = {
    "upload": 1,
    "submit": 3,
    "retry": 1,
    "cancel": 2,
    "pause": 3,
    "resume": 3,
    "claim": 8,
    "beat": 2,
    "step": 6,
    "store_checkpoint": 3,
    "record_resume": 1,
    "begin_stopping": 2,
    "succeed": 2,
    "fail": 2,
    "fulfil_cancel": 1,
    "give_back": 6,
    "let_lease_expire": 2,
    "reap": 2,
    "check_a_dataset": 2,
}
"""Methods of JobLife, and how often each is tried."""


@dataclass
class Expected:
    """A job as it must be."""

    id: str
    status: JobStatus
    key: int
    priority: int
    num_gpus: int
    dataset: str
    is_cancelled: bool = False
    owner: Lease | None = None
    attempt: int = 0
    infra_restarts: int = 0
    no_progress_restarts: int = 0
    step: int | None = None
    has_checkpoint: bool = False
    """Of the attempt that runs."""
    is_expired: bool = False
    """Its lease is over and nobody has looked yet."""

    def finish(self, status: JobStatus) -> None:
        self.status, self.owner = (S.CANCELLED if self.is_cancelled else status), None

    def give_back(self, fault: Fault) -> None:
        if self.is_cancelled:
            self.finish(S.CANCELLED)
            return
        if self.has_checkpoint:
            self.no_progress_restarts = 0
        self.infra_restarts += fault != Fault.NONE
        self.no_progress_restarts += fault == Fault.TRAINING
        is_exhausted = (
            self.infra_restarts > RETRIES.max_infra_restarts
            or self.no_progress_restarts > RETRIES.max_no_progress_restarts
        )
        if is_exhausted and fault != Fault.NONE:
            self.finish(S.FAILED)
        else:
            self.finish(S.PAUSED if self.status == S.PAUSING else S.QUEUED)


@dataclass
class World:
    """Connections, and the keys whose jobs they are."""

    api: Sessions
    worker: Sessions
    owner: Sessions
    settings: Settings
    keys: list[Identity] = field(default_factory=list)

    def clear(self) -> None:
        with self.owner.begin() as session:
            for table in ("adapters", "jobs", "datasets"):
                session.execute(text(f"DELETE FROM {table}"))


class JobLife(RuleBasedStateMachine):
    """Most rules choose among what lives, and sometimes among what is over."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.expected: dict[str, Expected] = {}
        self.datasets: dict[str, DatasetStatus] = {}
        self.final: dict[str, Row[Any]] = {}
        self.last_status: dict[str, JobStatus] = {}
        self.last_event = 0
        self.leases: list[Lease] = []
        world.clear()

    @initialize(is_checked=booleans())
    def begin(self, is_checked: bool) -> None:
        """With something of each kind, so that every rule finds what it is about."""
        self.upload(True)
        self.submit(0, 0, 0)
        self.claim(0)
        self.upload(is_checked)

    @rule(seed=integers(0, 2**64 - 1))
    def let_happen(self, seed: int) -> None:
        """One rule and not one of each: Hypothesis leaves out some for a whole run and repeats others, where most
        jobs need something of each."""
        dice = Random(seed)
        name = dice.choices(list(HAPPENINGS), list(HAPPENINGS.values()))[0]
        method = getattr(self, name)
        arguments = {
            argument: getattr(self, f"_pick_{argument}")(dice) for argument in inspect.signature(method).parameters
        }
        note(f"{name} {arguments}")
        method(**arguments)

    # --- Clients ---

    def upload(self, is_checked: bool) -> None:
        status = DatasetStatus.READY if is_checked else DatasetStatus.VALIDATING
        dataset = Dataset(id=new_id("ds"), tenant_id=TENANT, name="rows", filename="rows.jsonl", status=status)
        dataset.store_key, dataset.num_bytes, dataset.sha256 = "none", 1, ""
        dataset.created_by = self.world.keys[0].key_id
        self.datasets[dataset.id] = status
        with self._tenant() as session:
            session.add(dataset)

    def submit(self, key: int, priority: int, num_gpus: int) -> None:
        dataset = max(self.datasets)
        request = {"model": "tiny", "dataset": {"id": dataset}, "priority": priority, "resources": {"gpus": num_gpus}}
        work = self._submitting(lambda session: self._submit(session, key, request), dataset)
        self._expect(work, key, priority, num_gpus, dataset)

    def retry(self, job: str) -> None:
        old = self.expected[job]
        if old.status not in FINAL:
            with pytest.raises(Conflict), self._tenant() as session:
                self._retry(session, old)
            return
        new = self._submitting(lambda session: self._retry(session, old), old.dataset)
        self._expect(new, old.key, old.priority, old.num_gpus, old.dataset)

    def cancel(self, job: str) -> None:
        expected = self.expected[job]
        is_refused = expected.status in FINAL
        self._wish(lifecycle.request_cancel, job, is_refused)
        if not is_refused:
            expected.is_cancelled = True
            if expected.owner is None:
                expected.finish(S.CANCELLED)

    def pause(self, job: str) -> None:
        expected = self.expected[job]
        is_done = expected.status in (S.PAUSED, S.PAUSING)
        is_refused = expected.status in FINAL or (
            not is_done and (expected.is_cancelled or expected.status == S.STOPPING)
        )
        self._wish(lifecycle.request_pause, job, is_refused)
        if not is_refused and not is_done:
            expected.status = S.PAUSED if expected.owner is None else S.PAUSING

    def resume(self, job: str) -> None:
        expected = self.expected[job]
        is_refused = expected.status != S.PAUSED
        self._wish(lifecycle.resume, job, is_refused)
        if not is_refused:
            self._go_on(expected)

    # --- Workers ---

    def claim(self, free_gpus: int) -> None:
        """By a host of one GPU, which another of its processes may use now."""
        claimant = Claimant(f"worker-{len(self.leases)}", "host", 60, host_gpus=1, free_gpus=free_gpus)
        expected = self._predict_claim(free_gpus)
        claimed = lifecycle.claim_job(self.world.worker, claimant)
        if claimed is None:
            assert expected is None, f"{expected} was not claimed"
            return
        job, lease = claimed
        assert expected is not None
        assert job.id == expected.id
        expected.status, expected.owner = S.STARTING, lease
        expected.attempt += 1
        expected.has_checkpoint = expected.is_expired = False
        self.leases.append(lease)

    def beat(self, lease: Lease) -> None:
        wishes = [
            self._speak(lease, lambda session: lifecycle.renew_lease(session, lease)),
            self._speak(lease, lambda session: lifecycle.find_wish(session, lease)),
        ]
        if (job := self._find_owned(lease)) is not None:
            job.is_expired = False
            wish = StopReason.CANCELLED if job.is_cancelled else StopReason.PAUSED if job.status == S.PAUSING else None
            assert wishes == [wish, wish]

    def step(self, lease: Lease) -> None:
        job = self._find_owned(lease)
        step = ((job.step if job else None) or 0) + 1
        row = {"seq": step, "step": step, "epoch": 0.1, "tokens": step, "values": {"loss": 1.0}}
        news = News(
            {"step": step}, {"loss": 1.0}, metrics=[row], log_chunks=[{"seq": step, "num_lines": 1, "text": "x"}]
        )
        self._speak(lease, lambda session: lifecycle.store_news(session, lease, news))
        if job is not None:
            job.step = step
            job.status = S.RUNNING if job.status == S.STARTING else job.status

    def store_checkpoint(self, lease: Lease) -> None:
        job = self._find_owned(lease)
        step = (job.step if job else None) or 0
        checkpoint = {"step": step, "store_key": "x", "num_bytes": 1, "sha256": "", "metrics": {}}
        self._speak(lease, lambda session: lifecycle.store_checkpoint(session, lease, checkpoint))
        if job is not None:
            job.has_checkpoint = True

    def record_resume(self, lease: Lease) -> None:
        self._speak(lease, lambda session: lifecycle.record_resume(session, lease, 1))

    def begin_stopping(self, lease: Lease, reason: StopReason) -> None:
        self._speak(lease, lambda session: lifecycle.begin_stopping(session, lease, reason))
        job = self._find_owned(lease)
        if job is not None and (job.status != S.PAUSING or reason == StopReason.CANCELLED):
            job.status = S.STOPPING

    def succeed(self, lease: Lease) -> None:
        job = self._find_owned(lease)
        adapter = Adapter(job_id=lease.job_id, tenant_id=TENANT, model="tiny", store_key="x", num_bytes=1, sha256="")
        self._speak(lease, lambda session: lifecycle.succeed(session, lease, adapter, {"ok": True}))
        if job is not None:
            job.finish(S.SUCCEEDED)

    def fail(self, lease: Lease) -> None:
        self._speak(lease, lambda session: lifecycle.fail(session, lease, Ending(BROKEN, Fault.USER)))
        if (job := self._find_owned(lease)) is not None:
            job.finish(S.FAILED)

    def fulfil_cancel(self, lease: Lease) -> None:
        """Its worker does so only after the wish."""
        job = self._find_owned(lease)
        if job is None or job.is_cancelled:
            self._speak(lease, lambda session: lifecycle.cancel(session, lease, Ending()))
        if job is not None and job.is_cancelled:
            job.finish(S.CANCELLED)

    def give_back(self, lease: Lease, fault: Fault) -> None:
        self._speak(lease, lambda session: lifecycle.give_back(session, lease, Ending(BROKEN, fault), RETRIES))
        if (job := self._find_owned(lease)) is not None:
            job.give_back(fault)

    # --- What nobody wishes ---

    def let_lease_expire(self, lease: Lease) -> None:
        """Its worker forgot it, or hangs; it may still come back."""
        if (job := self._find_owned(lease)) is not None:
            job.is_expired = True
            with self.world.owner.begin() as session:
                over = func.now() - timedelta(seconds=1)
                session.execute(update(Job).where(Job.id == job.id).values(lease_expires_at=over))

    def reap(self) -> None:
        with self.world.worker.begin() as session:
            reaped = {job.id for job in lifecycle.reap_lost_jobs(session, RETRIES)}
        expired = [job for job in self.expected.values() if job.owner is not None and job.is_expired]
        assert reaped == {job.id for job in expired}
        for job in expired:
            job.give_back(Fault.INFRASTRUCTURE)

    def check_a_dataset(self, outcome: bool | None) -> None:
        """The oldest that waits. Without an outcome the checking process dies, and another takes the dataset anew."""
        with self.world.worker.begin() as session:
            dataset = lifecycle.claim_dataset(session, "checker", 60)
        waiting = sorted(name for name, status in self.datasets.items() if status == DatasetStatus.VALIDATING)
        assert (dataset and dataset.id) == next(iter(waiting), None)
        if dataset is None:
            return
        report = {"ok": bool(outcome), "rows": 1}
        with pytest.raises(LeaseLost), self.world.worker.begin() as session:
            lifecycle.finish_dataset(session, dataset.id, "another", report)
        with self.world.worker.begin() as session:
            if outcome is None:
                lifecycle.release_datasets(session, "checker")
                return
            lifecycle.finish_dataset(session, dataset.id, "checker", report)
        self.datasets[dataset.id] = DatasetStatus.READY if outcome else DatasetStatus.REJECTED
        for job in self.expected.values():
            if job.dataset == dataset.id and job.status == S.VALIDATING:
                self._go_on(job)

    # --- What is always true ---

    @invariant()
    def the_database_is_as_predicted(self) -> None:
        with self.world.worker() as session:
            jobs = {job.id: job for job in session.execute(select(*Job.__table__.columns))}
            attempts = session.execute(select(Attempt.job_id, Attempt.number, Attempt.lease_epoch, Attempt.ended_at))
            ordered = sorted(attempts.all())
            assert invariants.find_violations(session) == []
            self._check_events(session)
        found = {id_: _describe(job) for id_, job in jobs.items()}
        assert found == {job.id: _describe_expected(job) for job in self.expected.values()}
        for id_, before in self.final.items():
            assert jobs[id_] == before, "a final job changed"
        self.final = {id_: job for id_, job in jobs.items() if job.status in FINAL}
        for id_, job in self.expected.items():
            mine = [attempt for attempt in ordered if attempt.job_id == id_]
            epochs = [attempt.lease_epoch for attempt in mine]
            assert [attempt.number for attempt in mine] == list(range(1, job.attempt + 1))
            assert epochs == sorted(set(epochs)), "epochs strictly rise"
            assert [a.number for a in mine if a.ended_at is None] == ([job.attempt] if job.owner else [])
        for key, limit in enumerate(LIMITS):
            assert limit is None or self._count_running(key) <= limit

    def _check_events(self, session: Session) -> None:
        """Every change of a status is told, goes on from the one before, and is legal."""
        query = select(Event.seq, Event.job_id, Event.data).where(Event.seq > self.last_event, Event.type == "status")
        for self.last_event, job_id, data in session.execute(query.order_by(Event.seq)):
            before = self.last_status.get(job_id)
            assert data.get("from") == before
            assert before is None or data["to"] in TRANSITIONS[before]
            self.last_status[job_id] = S(data["to"])
        assert self.last_status == {job.id: job.status for job in self.expected.values()}

    # --- Steps ---

    def _pick_job(self, dice: Random) -> str:
        """What lives is tried more often than what is over."""
        living = [id_ for id_, job in self.expected.items() if job.status not in FINAL]
        owned = [id_ for id_ in living if self.expected[id_].owner is not None]
        return dice.choice([*3 * owned, *3 * living, *self.expected])

    def _pick_lease(self, dice: Random) -> Lease:
        living = [lease for lease in self.leases if self._find_owned(lease) is not None]
        return dice.choice([*5 * living, *self.leases])

    def _pick_key(self, dice: Random) -> int:
        return dice.randrange(len(LIMITS))

    def _pick_priority(self, dice: Random) -> int:
        return dice.choice([0, 0, 5])

    def _pick_num_gpus(self, dice: Random) -> int:
        return dice.choice([0, 0, 1])

    def _pick_free_gpus(self, dice: Random) -> int:
        return dice.choice([0, 1, 1])

    def _pick_fault(self, dice: Random) -> Fault:
        return dice.choice([Fault.NONE, Fault.USER, Fault.INFRASTRUCTURE, *3 * [Fault.TRAINING]])

    def _pick_reason(self, dice: Random) -> StopReason:
        return dice.choice([StopReason.WORKER_STOPPED, StopReason.STALLED, StopReason.CANCELLED])

    def _pick_is_checked(self, dice: Random) -> bool:
        return dice.random() < 0.6

    def _pick_outcome(self, dice: Random) -> bool | None:
        return dice.choice([True, True, False, None])

    def _tenant(self) -> Any:
        return tenant_transaction(self.world.api, TENANT)

    def _submit(self, session: Session, key: int, request: dict[str, Any]) -> Row[Any]:
        return submit_job(session, self.world.keys[key], self.world.settings, JobSpec.model_validate(request))

    def _retry(self, session: Session, job: Expected) -> Row[Any]:
        return retry_job(session, self.world.keys[job.key], self.world.settings, job.id, {})

    def _submitting(self, work: Callable[[Session], Row[Any]], dataset: str) -> Row[Any] | None:
        """The new job; None when its dataset was rejected, so that it must be refused."""
        if self.datasets[dataset] == DatasetStatus.REJECTED:
            with pytest.raises(InvalidRequest), self._tenant() as session:
                work(session)
            return None
        with self._tenant() as session:
            return work(session)

    def _expect(self, job: Row[Any] | None, key: int, priority: int, num_gpus: int, dataset: str) -> None:
        if job is None:
            return
        is_checked = self.datasets[dataset] == DatasetStatus.READY
        status = S.QUEUED if is_checked else S.VALIDATING
        self.expected[job.id] = Expected(job.id, status, key, priority, num_gpus, dataset)

    def _wish(self, ask: Callable[[Session, str], Job], job: str, is_refused: bool) -> None:
        if is_refused:
            with pytest.raises(Conflict), self._tenant() as session:
                ask(session, job)
        else:
            with self._tenant() as session:
                ask(session, job)

    def _go_on(self, job: Expected) -> None:
        status = self.datasets[job.dataset]
        if status == DatasetStatus.REJECTED:
            job.finish(S.FAILED)
        else:
            job.status = S.QUEUED if status == DatasetStatus.READY else S.VALIDATING

    def _predict_claim(self, free_gpus: int) -> Expected | None:
        waiting = [job for job in self.expected.values() if job.status == S.QUEUED and job.num_gpus <= free_gpus]
        able = [job for job in waiting if (limit := LIMITS[job.key]) is None or self._count_running(job.key) < limit]
        return min(able, key=lambda job: (-job.priority, self._count_running(job.key), job.id), default=None)

    def _count_running(self, key: int) -> int:
        return sum(job.owner is not None for job in self.expected.values() if job.key == key)

    def _find_owned(self, lease: Lease) -> Expected | None:
        """The lease's job, if the lease still counts."""
        job = self.expected[lease.job_id]
        return job if job.owner == lease else None

    def _speak(self, lease: Lease, write: Callable[[Session], Any]) -> Any:
        """As a worker writes about its job; one that lost it must be told so, and change nothing."""
        if self._find_owned(lease) is None:
            before = self._count_rows()
            with pytest.raises(LeaseLost), self.world.worker.begin() as session:
                write(session)
            assert self._count_rows() == before
            return None
        with self.world.worker.begin() as session:
            return write(session)

    def _count_rows(self) -> Any:
        """And the jobs themselves, in every column."""
        tables = ("attempts", "events", "metrics", "log_chunks", "checkpoints", "adapters")
        counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
        with self.world.worker() as session:
            jobs = session.execute(select(*Job.__table__.columns).order_by(Job.id)).all()
            return session.execute(text(f"SELECT {counts}")).one(), jobs


def _describe(job: Any) -> tuple[Any, ...]:
    progress = job.progress and job.progress["step"]
    counters = (job.attempt, job.lease_epoch, job.infra_restarts, job.no_progress_restarts)
    return job.status, job.lease_owner, job.cancel_requested_at is not None, progress, *counters


def _describe_expected(job: Expected) -> tuple[Any, ...]:
    assert (job.owner is not None) == (job.status in OWNED)
    owner = job.owner and job.owner.owner
    counters = (job.attempt, job.attempt, job.infra_restarts, job.no_progress_restarts)
    return job.status, owner, job.is_cancelled, job.step, *counters


def test_whatever_happens_in_whatever_order_a_job_is_what_the_model_says(
    open_sessions: Callable[[Role | None], Sessions], settings: Settings
) -> None:
    world = World(open_sessions(Role.API), open_sessions(Role.WORKER), open_sessions(None), settings)
    with world.api.begin() as session:
        for limit in LIMITS:
            key, _ = create_key(session, b"secret", name="test", tenant_id=TENANT, max_running=limit)
            world.keys.append(Identity(key.id, TENANT, is_admin=True))

    run_state_machine_as_test(lambda: JobLife(world), settings=SEARCH)  # type: ignore[arg-type]
