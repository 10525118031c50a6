"""The history checker: from what clients were promised, what the tables say and what really ran, the broken promises.

`read_history` gathers, `check_history` judges and is pure:

    I1   what was answered with a 201 ends, and nothing exists that nobody asked for
    I2   two processes of one job never live at once
    I3   epochs rise with every owner
    I4   every change of a status is a legal one, and a final status is the last
    I5   nothing starts after a job's end, nor after the answer that it is cancelled
    I6   the stored log and metrics of an attempt are its files', in order, without a gap or a double
    I7   after a resume the next step is the checkpoint's plus one
    I8   no process of an attempt outlives it
    I9   a job that succeeded, and only that, has an adapter: the one that an uninterrupted run would have made
    I10  the events tell every change
"""

import hashlib
import itertools
import json
import tarfile
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from jobs import invariants
from jobs.database import Sessions
from jobs.ids import new_id
from jobs.models import Adapter, Attempt, Event, Job, LogChunk, Metric
from jobs.status import FINAL, TRANSITIONS, FailureReason, JobStatus
from worker.collector import clean_text
from worker.launcher import MARKER

Json = dict[str, Any]


@dataclass
class Promise:
    """What the API answered about a job."""

    accepted_at: float
    num_steps: int
    cancelled_at: float | None = None
    """When it answered that the job is cancelled, not only that it will be."""
    cancel_asked_at: float | None = None


class ClientLog:
    """What clients were promised."""

    def __init__(self) -> None:
        self.promises: dict[str, Promise] = {}
        self.first_id = new_id("job")
        """Jobs of a smaller id were there before; ids rise with time."""
        self.unanswered_keys: set[str] = set()
        """Idempotency keys of requests that nobody answered: their jobs may exist or not."""

    def note_accepted(self, job_id: str, *, num_steps: int) -> None:
        self.promises.setdefault(job_id, Promise(time.time(), num_steps))

    def note_cancel(self, job_id: str, *, is_final: bool) -> None:
        now = time.time()
        self.promises[job_id].cancel_asked_at = now
        if is_final:
            self.promises[job_id].cancelled_at = now


@dataclass
class AttemptHistory:
    number: int
    epoch: int
    resumed_from_step: int | None = None
    is_over: bool = True
    is_lost: bool = False
    """It was taken from its worker: the end of what it wrote may be missing."""
    log: bytes | None = b""
    """Its train.log; None: the run folder is gone."""
    log_offset: int = 0
    stored_log: str = ""
    metric_steps: list[int] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    """Processes of it that live now."""


@dataclass
class JobHistory:
    id: str
    status: str
    promise: Promise | None
    finished_at: float | None = None
    idempotency_key: str | None = None
    attempts: list[AttemptHistory] = field(default_factory=list)
    statuses: list[tuple[str | None, str]] = field(default_factory=list)
    """From and to, of every event that tells a change."""
    metric_seqs: list[int] = field(default_factory=list)
    chunk_seqs: list[int] = field(default_factory=list)
    checkpoint_steps: set[int] = field(default_factory=set)
    """Every checkpoint that was ever reported."""
    journal: list[Json] = field(default_factory=list)
    adapter: str | None = None
    """What the stored adapter holds; `damaged` when the bytes are not those of its sha256."""


@dataclass
class History:
    jobs: list[JobHistory]
    promises: dict[str, Promise]
    unanswered_keys: Collection[str] = ()
    violations: list[str] = field(default_factory=list)
    """Of the rules of the tables."""


def compute_adapter(num_steps: int) -> str:
    """What the fake trainer's adapter holds after a run that nothing interrupted."""
    state = ""
    for step in range(1, num_steps + 1):
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
    return state


def check_history(history: History, *, frozen: Collection[str] = ()) -> list[str]:
    """The broken promises, each a sentence that begins with its rule. `frozen`: jobs whose machine stood still, so that
    their old processes could not know that they were to end."""
    found = [f"audit: {violation}" for violation in history.violations]
    known = {job.id for job in history.jobs}
    found += [f"I1: {job_id} was accepted and is not there" for job_id in history.promises if job_id not in known]
    for job in history.jobs:
        for rule, problem in _check_job(job, history, frozen):
            found.append(f"{rule}: {job.id}: {problem}")
    return found


def _check_job(job: JobHistory, history: History, frozen: Collection[str]) -> Iterator[tuple[str, str]]:
    if job.promise is None and job.idempotency_key not in history.unanswered_keys:
        yield "I1", "it is there and was not accepted"
    if job.status not in FINAL:
        yield "I1", f"it has not ended, it is {job.status}"
    if job.id not in frozen:
        yield from (("I2", f"overlap in attempt {row['attempt']}") for row in job.journal if row["kind"] == "overlap")
    epochs = [attempt.epoch for attempt in job.attempts]
    if any(new <= old for old, new in itertools.pairwise(epochs)):
        yield "I3", f"epochs do not rise: {epochs}"
    yield from _check_statuses(job)
    yield from _check_starts(job)
    for name, seqs in (("metrics", job.metric_seqs), ("log", job.chunk_seqs)):
        if seqs != list(range(1, len(seqs) + 1)):
            yield "I6", f"the sequence of the {name} has a gap or a double"
    for attempt in job.attempts:
        yield from _check_log(attempt)
        yield from _check_steps(job, attempt)
        if attempt.is_over and attempt.strays:
            yield "I8", f"attempt {attempt.number} is over and its processes live: {attempt.strays}"
    yield from _check_adapter(job)


def _check_statuses(job: JobHistory) -> Iterator[tuple[str, str]]:
    last: str | None = None
    for before, after in job.statuses:
        if before != last:
            yield "I10", f"an event tells of {before} -> {after} where the job was {last}"
        elif last is not None and after not in TRANSITIONS[JobStatus(last)]:
            yield "I4", f"{last} -> {after} is no legal change"
        last = after
    if last != job.status:
        yield "I10", f"it is {job.status}, and the last event tells of {last}"
    num_starts = sum(after == JobStatus.STARTING for _, after in job.statuses)
    if num_starts != len(job.attempts):
        yield "I10", f"{len(job.attempts)} attempts and {num_starts} events of a start"


def _check_starts(job: JobHistory) -> Iterator[tuple[str, str]]:
    ends = [job.finished_at, job.promise.cancelled_at if job.promise else None]
    for row in job.journal:
        is_start = row["kind"].endswith(" starts")
        if is_start and any(end is not None and row["time"] > end for end in ends):
            yield "I5", f"attempt {row['attempt']}: {row['kind']} after the job's end"


def _check_log(attempt: AttemptHistory) -> Iterator[tuple[str, str]]:
    if attempt.log is None:
        return
    if clean_text(attempt.log[: attempt.log_offset]) != attempt.stored_log:
        yield "I6", f"the stored log of attempt {attempt.number} is not what stands in its file"
    if attempt.is_over and not attempt.is_lost and attempt.log_offset != len(attempt.log):
        missing = len(attempt.log) - attempt.log_offset
        yield "I6", f"{missing} bytes of attempt {attempt.number} are missing in the stored log"


def _check_steps(job: JobHistory, attempt: AttemptHistory) -> Iterator[tuple[str, str]]:
    steps, number = attempt.metric_steps, attempt.number
    first = attempt.resumed_from_step or 0
    if steps != list(range(first + 1, first + 1 + len(steps))):
        yield "I6", f"the metrics of attempt {number} are not those of the steps after {first}: {steps[:5]}..."
    if first and first not in job.checkpoint_steps:
        yield "I7", f"attempt {number} goes on from step {first}, which no checkpoint was made of"
    rows = [row for row in job.journal if row["attempt"] == number]
    resumed = [row["step"] for row in rows if row["kind"] == "resumed"]
    if any(step != first for step in resumed):
        yield "I7", f"attempt {number} resumed from {resumed}, and the table says {first}"
    made = [row["step"] for row in rows if row["kind"] == "step"]
    if made and made[0] != first + 1:
        yield "I7", f"the first step of attempt {number} is {made[0]}, after a checkpoint of step {first}"
    if attempt.is_over and not attempt.is_lost and steps[: len(made)] != made:
        yield "I6", f"attempt {number} made the steps {made[-3:]} and stored {steps[-3:]}"


def _check_adapter(job: JobHistory) -> Iterator[tuple[str, str]]:
    if (job.status == JobStatus.SUCCEEDED) != (job.adapter is not None):
        yield "I9", f"it is {job.status}, and its adapter is {job.adapter}"
    elif job.adapter and job.promise and job.adapter != compute_adapter(job.promise.num_steps):
        yield "I9", "its adapter is not that of an uninterrupted run"


# --- Gathering --------------------------------------------------------------------------------------------------------


def read_history(sessions: Sessions, log: ClientLog, journals: Path, homes: Iterable[Path], store: Path) -> History:
    """Of all jobs since the log began. `homes`: of the nodes, where the run folders are."""
    strays = _find_strays(homes := list(homes))
    with sessions() as session:
        jobs = []
        for job in session.scalars(select(Job).where(Job.id >= log.first_id).order_by(Job.id)):
            events = session.scalars(select(Event).where(Event.job_id == job.id).order_by(Event.seq)).all()
            metrics = session.scalars(select(Metric).where(Metric.job_id == job.id).order_by(Metric.seq)).all()
            chunks = session.scalars(select(LogChunk).where(LogChunk.job_id == job.id).order_by(LogChunk.seq)).all()
            attempts = session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.number)).all()
            adapter = session.get(Adapter, job.id)
            changes = [event.data for event in events if event.type == "status"]
            jobs.append(
                JobHistory(
                    id=job.id,
                    status=job.status,
                    promise=log.promises.get(job.id),
                    finished_at=job.finished_at.timestamp() if job.finished_at else None,
                    idempotency_key=job.idempotency_key,
                    attempts=[_read_attempt(attempt, metrics, chunks, homes, strays) for attempt in attempts],
                    statuses=[(change.get("from"), change["to"]) for change in changes],
                    metric_seqs=[metric.seq for metric in metrics],
                    chunk_seqs=[chunk.seq for chunk in chunks],
                    checkpoint_steps={event.data["step"] for event in events if event.type == "checkpoint"},
                    journal=_read_journal(journals / f"{job.id}.jsonl"),
                    adapter=None if adapter is None else _read_adapter(store, adapter),
                )
            )
        violations = [f"{found.rule}: {', '.join(found.rows)}" for found in invariants.find_violations(session)]
    return History(jobs, log.promises, log.unanswered_keys, violations)


def _read_attempt(
    attempt: Attempt,
    metrics: Iterable[Metric],
    chunks: Iterable[LogChunk],
    homes: Iterable[Path],
    strays: dict[str, list[str]],
) -> AttemptHistory:
    folders = [home / "runs" / attempt.job_id / f"attempt-{attempt.number}" for home in homes]
    folder = next((folder for folder in folders if folder.exists()), None)
    log = folder / "train.log" if folder else None
    return AttemptHistory(
        number=attempt.number,
        epoch=attempt.lease_epoch,
        resumed_from_step=attempt.resumed_from_step,
        is_over=attempt.ended_at is not None,
        is_lost=_is_lost(attempt),
        log=log.read_bytes() if log and log.exists() else None,
        log_offset=attempt.log_offset,
        stored_log="".join(chunk.text for chunk in chunks if chunk.attempt == attempt.number),
        metric_steps=[metric.step for metric in metrics if metric.attempt == attempt.number],
        strays=[name for found in folders for name in strays.get(str(found), [])],
    )


def _is_lost(attempt: Attempt) -> bool:
    """Also when the job was to be cancelled: then nobody was there to see how its trainer ended."""
    reason = attempt.reason or {}
    code = reason.get("last_code", reason.get("code"))
    return code == FailureReason.WORKER_LOST or (code == "cancelled" and attempt.exit_code is None)


def _read_journal(path: Path) -> list[Json]:
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _read_adapter(store: Path, adapter: Adapter) -> str:
    path = store / adapter.store_key
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != adapter.sha256:
        return "damaged"
    with tarfile.open(path) as archive:
        weights = archive.extractfile("adapter/adapter_model.safetensors")
        assert weights is not None
        return weights.read()[-64:].decode()  # behind the header


def _find_strays(homes: Iterable[Path]) -> dict[str, list[str]]:
    """Living processes by the run folder that they belong to."""
    found: dict[str, list[str]] = {}
    for process in psutil.process_iter():
        try:
            run_dir = process.environ().get(MARKER, "")
            is_alive = process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            if is_alive and any(run_dir.startswith(str(home)) for home in homes):
                found.setdefault(run_dir, []).append(f"{process.pid} {process.name()}")
        except (psutil.Error, OSError):
            continue
    return found
