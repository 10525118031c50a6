"""The story of one attempt, and of one dataset's check. A message carries nothing: the table says what is next."""

import json
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from sqlalchemy.orm import Session

from jobs import lifecycle, repository
from jobs.database import LOST_DATABASE, run_until_done
from jobs.errors import InvalidRequest, LeaseLost
from jobs.lifecycle import Claimant, Ending, Lease
from jobs.model_registry import get_model
from jobs.models import Adapter, Dataset, Job, Json
from jobs.status import FailureReason, Fault, PhiPolicy, StopReason
from jobs.store import Store, StoreUnavailable
from jobs.task_queue import BROKER_ERRORS, TASKS, Queue, ring
from trainer_core.errors import ConfigurationError, TrainerError, VerificationError, is_disk_full
from trainer_core.run_dir import ModelSource, RunDir
from worker.app import SETTINGS, app, get_num_gpus, get_owner, get_rest, get_sessions, is_stopping, note_attempt
from worker.attempt import create_run_dir, get_run_dir
from worker.checkpoints import CheckpointShipper, fetch_checkpoint, ship_rest
from worker.checks import Checked, CheckInterrupted, CheckLease, check_dataset, open_workspace, sweep_leftovers
from worker.collector import Collector
from worker.deleting import delete_late_objects, delete_objects, expire_uploads
from worker.exporting import export_next
from worker.gpus import GpuSlots, claiming
from worker.heartbeat import Heartbeat, read_clock
from worker.host import build_retries, close_run_dir
from worker.initial import fetch_initial
from worker.launcher import Exit
from worker.machine import HOSTNAME
from worker.masking import build_masker
from worker.monitor import Monitor
from worker.presence import find_problem
from worker.release import NUM_LOSSES, store_adapter, sweep_earlier
from worker.verdict import Fate, Verdict, judge, judge_release
from worker.watched import Interrupted, run_watched

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

LAST_SECONDS = 25.0
"""A worker that must stop waits so long for its checkpoint to be stored."""
MAX_SWEPT = 100
"""Datasets whose leftovers one ring deletes."""
_RETRIES = build_retries(SETTINGS)
COUNT_WAITING = {Queue.TRAIN: repository.count_waiting_work, Queue.CHECK: repository.count_waiting_datasets}


@app.task(name=TASKS[Queue.TRAIN])  # type: ignore[untyped-decorator]
def run_next_job() -> None:
    """Take the job whose turn it is, if it fits on what is free here, and see it through; else merge an adapter that
    somebody wants merged."""
    if find_problem(SETTINGS, Queue.TRAIN, is_stopping=is_stopping(), rests_until=get_rest()) is not None:
        return
    asked_at = read_clock()
    with GpuSlots(SETTINGS) as slots:
        claimed = _claim_job(slots)
        if claimed is not None:
            job, lease = claimed
            logger.info("%s: attempt %d", job.id, job.attempt)
            with Heartbeat(SETTINGS, lease, asked_at, is_stopping) as heartbeat:
                _ring_for_the_next(Queue.TRAIN)
                _see_through(job, lease, heartbeat, slots)
    if claimed is None and not _export_next():
        return
    _ring_for_the_next(Queue.TRAIN)


def _export_next() -> bool:
    """Whether there may be more."""
    try:
        return export_next(SETTINGS, get_sessions(), get_owner().id, is_stopping)
    except (OSError, StoreUnavailable, *LOST_DATABASE):
        logger.exception("a merge failed on this machine; it is tried again when its lease ends")
        return False


def _claim_job(slots: GpuSlots) -> tuple[Job, Lease] | None:
    with claiming(SETTINGS):
        slots.take_free()
        claimant = Claimant(
            owner=get_owner().id,
            hostname=HOSTNAME,
            lease_seconds=SETTINGS.lease_seconds,
            host_gpus=get_num_gpus(),
            free_gpus=len(slots),
            patience_seconds=SETTINGS.patience_seconds,
        )
        claimed = lifecycle.claim_job(get_sessions(), claimant)
        slots.keep(claimed[0].num_gpus if claimed else 0)
    return claimed


def _see_through(job: Job, lease: Lease, heartbeat: Heartbeat, slots: GpuSlots) -> None:
    run_dir, went_well = get_run_dir(SETTINGS, job), True
    try:
        went_well = run_attempt(job, lease, heartbeat, slots)
    except LeaseLost:
        logger.warning("%s: it belongs to somebody else now", job.id)
        _delete_late_objects(job.id)
    except LOST_DATABASE:
        logger.exception("%s: the database went away", job.id)
        reason = {"code": StopReason.DATABASE_LOST, "message": "the database went away"}
        _end(lease, lambda s: lifecycle.give_back(s, lease, Ending(reason, Fault.INFRASTRUCTURE), _RETRIES))
    except StoreUnavailable as error:
        went_well = False
        logger.warning("%s: the store does not answer: %s", job.id, error)
        reason = {
            "code": FailureReason.STORE_UNAVAILABLE,
            "message": f"the store does not answer: {error}",
            "remedy": "see that it is reachable, may be written to and has room; `medtune doctor` tries it",
        }
        _end(lease, lambda s: lifecycle.give_back(s, lease, Ending(reason, Fault.INFRASTRUCTURE), _RETRIES))
    except Exception as error:
        went_well = False
        logger.exception("%s: the worker failed", job.id)
        message = f"the worker failed with {type(error).__name__}; its log says more"
        reason = {"code": FailureReason.INTERNAL_ERROR, "message": message}
        if is_disk_full(error):
            remedy = "make room on the worker's disk, or raise MEDTUNE_DISK_RESERVE_BYTES"
            reason = {"code": StopReason.DISK_FULL, "message": "the worker's disk is full", "remedy": remedy}
        fault = Fault.INFRASTRUCTURE if isinstance(error, OSError) else Fault.TRAINING
        _end(lease, lambda s: lifecycle.give_back(s, lease, Ending(reason, fault), _RETRIES))
    finally:
        close_run_dir(run_dir)
        note_attempt(went_well=went_well)


def run_attempt(job: Job, lease: Lease, heartbeat: Heartbeat, slots: GpuSlots) -> bool:
    """Prepare, train, verify; then one end, in the transaction that stores what proves it.

    False when this machine may be the reason that it came to nothing.
    """
    sessions, store = get_sessions(), Store(SETTINGS.store_location)
    try:
        model = get_model(SETTINGS, job.model)
    except InvalidRequest as error:
        reason = {"code": FailureReason.MODEL_UNAVAILABLE, "message": error.message}
        _end(lease, lambda session: lifecycle.fail(session, lease, Ending(reason, Fault.USER)))
        return True
    run_dir = get_run_dir(SETTINGS, job)
    attempt, last_seqs, datasets, accepted = _run(
        lambda session: (
            repository.get_attempt(session, job.id, job.attempt),
            repository.get_last_seqs(session, job.id),
            repository.list_datasets_of_job(session, job),
            repository.list_accepted_findings(session, job.id),
        )
    )
    try:
        fetched = run_watched(
            lambda: _prepare(run_dir, store, job, lease, model, datasets, accepted),
            heartbeat.find_stop_reason,
            SETTINGS.start_seconds,
            clean_up=lambda: close_run_dir(run_dir),
        )
    except Interrupted as interruption:
        verdict = judge(Exit(None), interruption.reason, None, [])
        _end(lease, lambda session: _conclude(session, lease, verdict, None, None))
        return True
    except VerificationError as error:
        verdict = judge_release(error)
        _end(lease, lambda session: _conclude(session, lease, verdict, None, None))
        return True
    keep = job.spec["training"]["keep_checkpoints"]
    shipper = CheckpointShipper(sessions, store, lease, run_dir, attempt=job.attempt, keep=keep, stored_steps=fetched)
    collector = Collector(run_dir, attempt, last_seqs, build_masker(SETTINGS))
    monitor = Monitor(
        SETTINGS,
        sessions,
        lease,
        run_dir,
        heartbeat=heartbeat,
        collector=collector,
        shipper=shipper,
        slots=slots,
        is_worker_stopping=is_stopping,
    )
    try:
        verdict = judge(*monitor.run("train"), collector.error, collector.log_tail)
    finally:
        seconds = LAST_SECONDS if is_stopping() else SETTINGS.save_grace_seconds
        run_watched(lambda: ship_rest(shipper, run_dir, seconds), heartbeat.keep_alive, 2 * seconds)
    adapter = None
    if verdict.fate == Fate.SUCCEED:
        verdict = judge(*monitor.run("verify"), collector.error, collector.log_tail)
    if verdict.fate == Fate.SUCCEED:
        metrics = _run(lambda session: repository.sample_metrics(session, job.id, NUM_LOSSES))
        try:
            adapter = run_watched(
                lambda: store_adapter(SETTINGS, store, job, run_dir, datasets, metrics),
                heartbeat.find_stop_reason,
                SETTINGS.start_seconds,
            )
        except Interrupted as interruption:
            verdict = judge(Exit(None), interruption.reason, None, [])
        except TrainerError as error:
            logger.error("%s: its adapter cannot be signed: %s: %s %s", job.id, error.code, error, error.remedy)
            verdict = judge_release(error)
    verification = _load_json(run_dir.verification)
    is_ended = _end(lease, lambda session: _conclude(session, lease, verdict, adapter, verification))
    if is_ended and adapter is not None:
        _sweep_earlier(store, job, adapter)
    return collector.last_step > 0 or verdict.ending.fault not in (Fault.INFRASTRUCTURE, Fault.TRAINING)


def _prepare(
    run_dir: RunDir,
    store: Store,
    job: Job,
    lease: Lease,
    model: ModelSource,
    datasets: Sequence[Dataset],
    accepted: Collection[tuple[str, str]],
) -> list[int]:
    create_run_dir(run_dir, SETTINGS, store, job, model, datasets, accepted)
    with get_sessions()() as session:
        initial = repository.find_initial(session, job)
    fetch_initial(store, initial, run_dir)
    return fetch_checkpoint(get_sessions(), store, lease, run_dir)


def _conclude(
    session: Session, lease: Lease, verdict: Verdict, adapter: Adapter | None, verification: Json | None
) -> None:
    match verdict.fate:
        case Fate.SUCCEED:
            assert adapter is not None
            assert verification is not None
            lifecycle.succeed(session, lease, adapter, verification)
        case Fate.CANCEL:
            lifecycle.cancel(session, lease, verdict.ending)
        case Fate.GIVE_BACK:
            lifecycle.give_back(session, lease, verdict.ending, _RETRIES)
        case Fate.HOLD:
            details = (verdict.ending.reason or {})["details"]
            lifecycle.hold(session, lease, verdict.ending, step=details["step"], findings=details["findings"])
        case Fate.FAIL:
            lifecycle.fail(session, lease, verdict.ending, verification)


def _run(work: Callable[[Session], Result]) -> Result:
    """A transaction that waits for a database that is away; when this worker must stop, not for long."""
    return run_until_done(get_sessions(), work, is_stopping)


def _end(lease: Lease, work: Callable[[Session], None]) -> bool:
    """The last word about an attempt; False: it was not this worker's to say, or nobody heard it."""
    try:
        _run(work)
        return True
    except LeaseLost:
        logger.warning("%s: it belongs to somebody else now", lease.job_id)
    except LOST_DATABASE:  # And this worker must stop.
        logger.exception("%s: the database is away; the job goes on when its lease is over", lease.job_id)
    return False


@app.task(name=TASKS[Queue.CHECK])  # type: ignore[untyped-decorator]
def check_next_dataset() -> None:
    """Take the oldest unchecked dataset, if there is one, and check its rows."""
    if not is_stopping():  # Also when the disk is nearly full: this makes room.
        _sweep_all()
        delete_objects(get_sessions(), Store(SETTINGS.store_location))
        expire_uploads(get_sessions(), Store(SETTINGS.store_location))
    if find_problem(SETTINGS, Queue.CHECK, is_stopping=is_stopping(), rests_until=get_rest()) is not None:
        return
    owner = get_owner().id
    with get_sessions().begin() as session:
        dataset = lifecycle.claim_dataset(session, owner, SETTINGS.lease_seconds)
    if dataset is None:
        return
    _ring_for_the_next(Queue.CHECK)
    lease = CheckLease(get_sessions(), dataset.id, owner, SETTINGS.lease_seconds, is_stopping)
    try:
        with open_workspace(SETTINGS, owner) as folder:
            found = _check_dataset(dataset, lease, folder)
            logger.info("%s: %s rows, ok: %s", dataset.id, found.report["rows"], found.report["ok"])
            result = (found.report, found.clean, found.hashes)
            _run(lambda session: lifecycle.finish_dataset(session, dataset.id, owner, *result))
    except LeaseLost:
        logger.warning("%s: somebody else checks it now", dataset.id)
        _sweep([dataset.id])
        return
    except CheckInterrupted:
        logger.info("%s: its check begins anew elsewhere: this worker must stop", dataset.id)
        _run(lambda session: lifecycle.release_datasets(session, owner))
        return
    except (OSError, StoreUnavailable, ConfigurationError) as error:
        told = f"{error.code}: {error}. {error.remedy}" if isinstance(error, ConfigurationError) else str(error)
        logger.error("%s: cannot be checked now; its check is tried again when this lease ends. %s", dataset.id, told)
        reason = _tell_obstacle(error)
        _run(lambda session: lifecycle.note_obstacle(session, dataset.id, owner, reason))
        return
    _ring_for_the_next(Queue.TRAIN)
    if dataset.phi_policy == PhiPolicy.REPLACE or dataset.uri is not None or not found.report["ok"]:
        _sweep([dataset.id])


def _tell_obstacle(error: Exception) -> Json:
    """For the dataset's owner, who need not know the machine's paths."""
    if isinstance(error, ConfigurationError):
        code = error.code
    elif is_disk_full(error):
        code = StopReason.DISK_FULL
    else:
        code = FailureReason.STORE_UNAVAILABLE if isinstance(error, StoreUnavailable) else FailureReason.INTERNAL_ERROR
    return {
        "code": code,
        "message": "a worker could not make the check; it is tried again until it can",
        "remedy": "let the operator read `medtune doctor` and the log of the check worker",
    }


def _sweep_all() -> None:
    """What others, who are dead, did not get to."""
    with get_sessions()() as session:
        datasets = repository.list_datasets_with_leftovers(session, MAX_SWEPT)
    _sweep([dataset.id for dataset in datasets])


def _sweep(dataset_ids: Sequence[str]) -> None:
    for dataset_id in dataset_ids:
        try:
            sweep_leftovers(get_sessions(), Store(SETTINGS.store_location), dataset_id)
        except (StoreUnavailable, *LOST_DATABASE) as error:
            logger.warning("%s: what it had before its check is not deleted yet: %s", dataset_id, error)


def _delete_late_objects(job_id: str) -> None:
    try:
        delete_late_objects(get_sessions(), Store(SETTINGS.store_location), job_id)
    except (StoreUnavailable, *LOST_DATABASE) as error:
        logger.warning("%s: what was stored of it since its deletion stays: %s", job_id, error)


def _check_dataset(dataset: Dataset, lease: CheckLease, folder: Path) -> Checked:
    try:
        return check_dataset(SETTINGS, get_sessions(), dataset, lease, folder)
    except (OSError, StoreUnavailable, ConfigurationError, LeaseLost, CheckInterrupted):  # Not the rows.
        raise
    except Exception as error:  # An unreadable dataset is rejected, not tried for ever.
        logger.exception("%s: the check failed", dataset.id)
        finding = {"line": 0, "code": "check_failed", "message": f"the check failed: {type(error).__name__}"}
        return Checked({"ok": False, "rows": 0, "findings": [finding]})


def _ring_for_the_next(queue: Queue) -> None:
    """One ring wakes one worker; while there is more to do, each wakes the next."""
    try:
        with get_sessions().begin() as session:
            is_more = COUNT_WAITING[queue](session, at_most=1) > 0
        if is_more:
            ring(app, queue)
    except (*LOST_DATABASE, *BROKER_ERRORS) as error:
        logger.warning("cannot ring for more work, the reconciler will: %s", error)


def _sweep_earlier(store: Store, job: Job, adapter: Adapter) -> None:
    try:
        sweep_earlier(store, job, adapter)
    except StoreUnavailable as error:
        logger.warning("%s: what earlier attempts stored of its adapter stays: %s", job.id, error)


def _load_json(path: Path) -> Json | None:
    if not path.is_file():
        return None
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    return content
