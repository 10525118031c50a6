"""The story of one attempt, and of one dataset's check. A message carries nothing: the table says what is next."""

import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.orm import Session

from jobs import lifecycle, repository
from jobs.database import LOST_DATABASE, run_until_done
from jobs.errors import InvalidRequest, LeaseLost
from jobs.lifecycle import Lease
from jobs.model_registry import get_model
from jobs.models import Dataset, Job, Json
from jobs.status import FailureReason, StopReason
from jobs.store import Store
from jobs.task_queue import BROKER_ERRORS, TASKS, Queue, ring
from trainer_core.data.validation import validate_file
from worker.app import SETTINGS, STOPPING, WORKER_ID, app, get_num_gpus, get_sessions
from worker.attempt import create_run_dir, delete_private_files, describe_failure, get_run_dir, store_adapter
from worker.monitor import Monitor

logger = logging.getLogger(__name__)

COUNT_WAITING = {Queue.TRAIN: repository.count_queued_jobs, Queue.CHECK: repository.count_waiting_datasets}


@app.task(name=TASKS[Queue.TRAIN])  # type: ignore[untyped-decorator]
def run_next_job() -> None:
    """Take the best queued job, if there is one, and see it through."""
    if STOPPING.is_set():
        return
    with get_sessions().begin() as session:
        claimed = lifecycle.claim_job(session, WORKER_ID, SETTINGS.lease_seconds, get_num_gpus())
    if claimed is None:
        return
    job, lease = claimed
    logger.info("%s: attempt %d", job.id, job.attempt)
    _ring_for_the_next(Queue.TRAIN)
    try:
        run_attempt(job, lease)
    except LeaseLost:
        logger.warning("%s: it belongs to somebody else now", job.id)
    except LOST_DATABASE:
        logger.exception("%s: the database was away for too long; the job is queued again when its lease ends", job.id)
    except Exception as error:
        logger.exception("%s: the worker failed", job.id)
        message = f"the worker failed with {type(error).__name__}; its log says more"
        _end(
            lease,
            lambda session: lifecycle.fail(session, lease, {"code": FailureReason.INTERNAL_ERROR, "message": message}),
        )


def run_attempt(job: Job, lease: Lease) -> None:
    """Prepare, train, verify; then one final status, in the transaction that stores what proves it."""
    sessions, store = get_sessions(), Store(SETTINGS.store_location)
    try:
        model = get_model(SETTINGS, job.model)
    except InvalidRequest as error:
        reason = {"code": FailureReason.MODEL_UNAVAILABLE, "message": error.message}
        _end(lease, lambda session: lifecycle.fail(session, lease, reason))
        return
    datasets, first_seqs = run_until_done(
        sessions,
        lambda session: (repository.list_datasets_of_job(session, job), repository.get_last_seqs(session, job.id)),
        0.75 * lease.seconds,
    )
    run_dir = get_run_dir(SETTINGS, job)
    monitor = Monitor(sessions, lease, run_dir, SETTINGS, first_seqs=first_seqs, is_worker_stopping=STOPPING.is_set)
    try:
        create_run_dir(run_dir, store, job, model, datasets)
        exit_code, stop_reason = monitor.run("train")
        if exit_code == 0 and stop_reason is None:
            exit_code, stop_reason = monitor.run("verify")
    finally:
        delete_private_files(run_dir)
    verification = _load_json(run_dir.verification)
    adapter = store_adapter(store, job, run_dir) if exit_code == 0 and stop_reason is None else None

    def finish(session: Session) -> None:
        if stop_reason == StopReason.CANCELLED:
            lifecycle.cancel(session, lease, exit_code=exit_code)
        elif stop_reason == StopReason.WORKER_STOPPED:
            reason = {"code": stop_reason, "message": "its worker was stopped"}
            lifecycle.requeue(session, lease, reason, exit_code=exit_code)
        elif adapter is None or verification is None:
            failure = describe_failure(exit_code, monitor.error, monitor.log_tail)
            lifecycle.fail(session, lease, failure, exit_code=exit_code, verification=verification)
        else:
            lifecycle.succeed(session, lease, adapter, verification)

    _end(lease, finish)


def _end(lease: Lease, work: Callable[[Session], None]) -> None:
    """The last word about an attempt, which waits for a database that is away as long as the lease may last."""
    run_until_done(get_sessions(), work, 0.75 * lease.seconds)


@app.task(name=TASKS[Queue.CHECK])  # type: ignore[untyped-decorator]
def check_next_dataset() -> None:
    """Take the oldest unchecked dataset, if there is one, and check its rows."""
    with get_sessions().begin() as session:
        dataset = lifecycle.claim_dataset(session, WORKER_ID, SETTINGS.lease_seconds)
    if dataset is None:
        return
    _ring_for_the_next(Queue.CHECK)
    try:
        report = _check_dataset(dataset)
    except OSError:
        logger.exception("%s: cannot be read now; its check is tried again when this lease ends", dataset.id)
        return
    logger.info("%s: %s rows, ok: %s", dataset.id, report["rows"], report["ok"])
    try:
        with get_sessions().begin() as session:
            lifecycle.finish_dataset(session, dataset.id, WORKER_ID, report)
    except LeaseLost:
        logger.warning("%s: somebody else checks it now", dataset.id)
        return
    _ring_for_the_next(Queue.TRAIN)


def _check_dataset(dataset: Dataset) -> Json:
    store = Store(SETTINGS.store_location)
    try:
        with tempfile.TemporaryDirectory(prefix="check-", dir=SETTINGS.home) as folder:
            path = Path(folder) / "data"
            store.fetch(dataset.store_key, path)
            report = validate_file(path)
            return {"ok": report.ok, **report.model_dump(mode="json")}
    except OSError:  # The store or the disk, not the rows.
        raise
    except Exception as error:  # An unreadable dataset is rejected, not tried for ever.
        logger.exception("%s: the check failed", dataset.id)
        finding = {"line": 0, "code": "check_failed", "message": f"the check failed: {type(error).__name__}"}
        return {"ok": False, "rows": 0, "findings": [finding]}


def _ring_for_the_next(queue: Queue) -> None:
    """One ring wakes one worker; while there is more to do, each wakes the next."""
    try:
        with get_sessions().begin() as session:
            is_more = COUNT_WAITING[queue](session) > 0
        if is_more:
            ring(app, queue)
    except (*LOST_DATABASE, *BROKER_ERRORS) as error:
        logger.warning("cannot ring for more work, the reconciler will: %s", error)


def _load_json(path: Path) -> Json | None:
    if not path.is_file():
        return None
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    return content
