"""The workers that live, and whether the jobs' rows are true and none is stuck."""

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy.orm import Session

from cli.doctor.finding import ERROR, MANY, OK, WARNING, Finding, name_some
from cli.doctor.sessions import reading
from jobs import invariants, repository
from jobs.settings import Settings
from jobs.task_queue import Queue

IDLE_SECONDS = 60
"""An idle worker takes a job that fits within less."""


def check_workers(settings: Settings) -> Iterator[Finding]:
    with reading(settings) as session:
        if session is None:
            return
        workers = repository.list_workers(session)
    for queue in Queue:
        living = [worker for worker in workers if worker.queue == queue]
        if not living:
            remedy = f"start `medtune worker --queue {queue}`, or see why it ended in its log"
            yield Finding("workers", WARNING, f"none lives for the queue {queue}", remedy)
        for worker in living:
            name = f"{queue} on {worker.hostname} (pid {worker.pid}, {worker.num_gpus} GPUs)"
            if worker.problem:
                yield Finding("workers", WARNING, f"{name} takes no job: {worker.problem}", "see to that")
            else:
                yield Finding("workers", OK, f"{name}, seen {worker.last_seen_at:%H:%M:%S} UTC")


def check_rows(settings: Settings) -> Iterator[Finding]:
    with reading(settings) as session:
        if session is None:
            return
        findings = [
            Finding("rows", ERROR, f"not true: {violation.rule}: {name_some(violation.rows)}", "report it as a bug")
            for violation in invariants.find_violations(session)
        ]
        overdue = 2 * timedelta(seconds=settings.lease_seconds)
        lost = repository.list_overdue_jobs(session, overdue, at_most=MANY + 1)
        idle = _find_idle_worker(session)
    if lost:
        message = f"nobody took these from their lost workers: {name_some(lost)}"
        findings.append(Finding("rows", ERROR, message, "start `medtune reconciler`, or see its log"))
    if idle:
        remedy = "see that Redis and `medtune reconciler` run; else start the worker again"
        findings.append(Finding("rows", ERROR, idle, remedy))
    yield from findings or [Finding("rows", OK, f"{len(invariants.RULES)} rules hold, and no job is stuck")]


def _find_idle_worker(session: Session) -> str | None:
    """A job that waits though a worker that could take it has nothing to do."""
    for worker in repository.list_workers(session):
        if worker.queue != Queue.TRAIN or worker.problem is not None:
            continue
        num_used, num_running = repository.count_jobs_on_host(session, worker.hostname)
        if worker.num_gpus == 0 and num_running:
            continue
        free = worker.num_gpus - num_used
        found = repository.find_next_job(session, host_gpus=worker.num_gpus, free_gpus=free, patience_seconds=86400)
        if found is None or not found.fits:
            continue
        job = repository.get_job(session, found.id)
        since = max(job.queued_at, job.not_before, worker.started_at)
        if worker.last_seen_at - since > timedelta(seconds=IDLE_SECONDS):
            return f"{job.id} waits since {since:%H:%M:%S} UTC though the worker on {worker.hostname} could take it"
    return None
