"""The story of one attempt, and of one dataset's check. A message carries nothing: the table says what is next."""

import json
import logging
import tempfile
from pathlib import Path

from kombu.exceptions import OperationalError

from jobs import lifecycle, repository
from jobs.errors import InvalidRequest, LeaseLost
from jobs.lifecycle import Lease
from jobs.model_registry import get_model
from jobs.models import Dataset, Job, Json
from jobs.status import FailureReason, StopReason
from jobs.store import Store
from jobs.task_queue import TASKS, Queue, ring
from trainer_core.data.validation import validate_jsonl
from worker.app import SETTINGS, STOPPING, WORKER_ID, app, get_num_gpus, get_sessions
from worker.attempt import create_run_dir, delete_private_files, describe_failure, store_adapter
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
    _ring_for_the_next(Queue.TRAIN)
    logger.info("%s: attempt %d", job.id, job.attempt)
    try:
        run_attempt(job, lease)
    except LeaseLost:
        logger.warning("%s: it belongs to somebody else now", job.id)
    except Exception as error:
        logger.exception("%s: the worker failed", job.id)
        reason = {
            "code": FailureReason.INTERNAL_ERROR,
            "message": f"the worker failed: {type(error).__name__}: {error}",
        }
        with get_sessions().begin() as session:
            lifecycle.fail(session, lease, reason)


def run_attempt(job: Job, lease: Lease) -> None:
    """Prepare, train, verify; then one final status, in the transaction that stores what proves it."""
    sessions, store = get_sessions(), Store(SETTINGS.store_location)
    try:
        model = get_model(SETTINGS, job.model)
    except InvalidRequest as error:
        with sessions.begin() as session:
            lifecycle.fail(session, lease, {"code": FailureReason.MODEL_UNAVAILABLE, "message": error.message})
        return
    with sessions.begin() as session:
        datasets = repository.list_datasets_of_job(session, job)
        first_seqs = repository.get_last_seqs(session, job.id)
    run_dir = create_run_dir(SETTINGS, store, job, model, datasets)
    monitor = Monitor(sessions, lease, run_dir, SETTINGS, first_seqs=first_seqs, is_worker_stopping=STOPPING.is_set)
    try:
        exit_code, stop_reason = monitor.run("train")
        if exit_code == 0 and stop_reason is None:
            exit_code, stop_reason = monitor.run("verify")
    finally:
        delete_private_files(run_dir)
    verification = _load_json(run_dir.verification)
    adapter = store_adapter(store, job, run_dir) if exit_code == 0 and stop_reason is None else None
    with sessions.begin() as session:
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


@app.task(name=TASKS[Queue.CHECK])  # type: ignore[untyped-decorator]
def check_next_dataset() -> None:
    """Take the oldest unchecked dataset, if there is one, and check its rows."""
    with get_sessions().begin() as session:
        dataset = lifecycle.claim_dataset(session, WORKER_ID, SETTINGS.lease_seconds)
    if dataset is None:
        return
    _ring_for_the_next(Queue.CHECK)
    report = _check_dataset(dataset)
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
            path = Path(folder) / "data.jsonl"
            store.fetch(dataset.store_key, path)
            report = validate_jsonl(path)
            return {"ok": report.ok, **report.model_dump(mode="json")}
    except Exception as error:  # An unreadable dataset is rejected, not tried for ever.
        logger.exception("%s: the check failed", dataset.id)
        finding = {"line": 0, "code": "check_failed", "message": f"the check failed: {type(error).__name__}"}
        return {"ok": False, "rows": 0, "findings": [finding]}


def _ring_for_the_next(queue: Queue) -> None:
    """One ring wakes one worker; while there is more to do, each wakes the next."""
    with get_sessions().begin() as session:
        is_more = COUNT_WAITING[queue](session) > 0
    try:
        if is_more:
            ring(app, queue)
    except OperationalError as error:
        logger.warning("cannot ring for more work, the reconciler will: %s", error)


def _load_json(path: Path) -> Json | None:
    if not path.is_file():
        return None
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    return content
