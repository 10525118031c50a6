"""What dead processes of this machine left behind: trainers, news that nobody sent, leases, private files."""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator

from jobs import lifecycle, repository
from jobs.database import LOST_DATABASE, Sessions
from jobs.errors import LeaseLost
from jobs.lifecycle import Lease, Retries
from jobs.models import Job
from jobs.settings import Settings
from jobs.store import Store
from trainer_core.run_dir import RunDir
from worker.attempt import OWNER_FILE, delete_private_files, get_run_dir, read_owner
from worker.checkpoints import CheckpointShipper, ship_rest
from worker.collector import Collector
from worker.launcher import end_strays
from worker.machine import get_owners_dir, is_owner_alive, try_to_lock
from worker.masking import build_masker

logger = logging.getLogger(__name__)

WORKSPACE = "check-"
"""How the name of a check's folder begins; its owner follows."""
KEEP_RUNS_SECONDS = 7 * 86400.0
"""Logs and events of ended attempts stay on the machine for so long, for whoever looks for a fault."""


def build_retries(settings: Settings) -> Retries:
    return Retries(settings.max_infra_restarts, settings.max_no_progress_restarts, settings.backoff_seconds)


def recover_host(sessions: Sessions, settings: Settings) -> None:
    """Finish what owners of this machine that are dead began. Safe when several do it at once.

    Raises a database's errors; the next call goes on.
    """
    for path in sorted(get_owners_dir(settings).glob("worker_*")):
        lock = try_to_lock(path)
        if lock is None:
            continue
        try:
            if _recover_owner(sessions, settings, path.name):
                path.unlink(missing_ok=True)
        except LOST_DATABASE:
            raise
        except Exception:  # One that cannot be helped must not keep the others from it.
            logger.exception("cannot finish what %s began", path.name)
        finally:
            os.close(lock)


def delete_old_runs(settings: Settings) -> None:
    """Of attempts that ended long ago."""
    for run_dir in list_run_dirs(settings):
        with contextlib.suppress(FileNotFoundError):  # Somebody else of this machine does the same.
            is_old = time.time() - run_dir.path.stat().st_mtime > KEEP_RUNS_SECONDS
            owner = read_owner(run_dir.path)
            if is_old and (owner is None or not is_owner_alive(settings, owner)):
                shutil.rmtree(run_dir.path, ignore_errors=True)


def delete_dead_workspaces(settings: Settings) -> None:
    """Rows of checks whose workers are dead, on whatever machine shares this home."""
    for path in settings.home.glob(f"{WORKSPACE}*"):
        owner = path.name.removeprefix(WORKSPACE).split("-")[0]
        if not is_owner_alive(settings, owner):
            logger.warning("deleting %s: its worker is dead", path.name)
            shutil.rmtree(path, ignore_errors=True)


def list_run_dirs(settings: Settings) -> Iterator[RunDir]:
    for path in sorted(settings.runs_dir.glob("job_*/attempt-*")):
        yield RunDir(path)


def _recover_owner(sessions: Sessions, settings: Settings, owner: str) -> bool:
    """False when something of it is still alive: its lease then runs out by itself."""
    run_dirs = [run_dir for run_dir in list_run_dirs(settings) if read_owner(run_dir.path) == owner]
    resisting = [run_dir for run_dir in run_dirs if not end_strays(run_dir.path)]
    if resisting:
        logger.error("%s is dead, and processes of its attempt cannot be ended", owner)
        return False
    with sessions() as session:
        jobs = repository.list_jobs_of_owner(session, owner)
    for job in jobs:
        logger.warning("%s: its worker %s is dead", job.id, owner)
        try:
            _recover_job(sessions, settings, job)
        except LeaseLost:
            logger.warning("%s: it was taken from its dead worker already", job.id)
    with sessions.begin() as session:
        lifecycle.release_datasets(session, owner)
    for run_dir in run_dirs:
        close_run_dir(run_dir)
    return True


def close_run_dir(run_dir: RunDir) -> None:
    """Nobody works in it any more."""
    delete_private_files(run_dir)
    (run_dir.path / OWNER_FILE).unlink(missing_ok=True)


def _recover_job(sessions: Sessions, settings: Settings, job: Job) -> None:
    assert job.lease_owner is not None
    lease = Lease(job.id, job.lease_owner, job.lease_epoch, settings.lease_seconds)
    run_dir = get_run_dir(settings, job)
    with sessions.begin() as session:
        lifecycle.renew_lease(session, lease)  # For what follows, in the dead owner's name.
    with sessions() as session:
        attempt = repository.get_attempt(session, job.id, job.attempt)
        last_seqs = repository.get_last_seqs(session, job.id)
        collector = Collector(run_dir, attempt, last_seqs, build_masker(settings))
        stored = [checkpoint.step for checkpoint in repository.list_checkpoints(session, job.id)]
    while collector.collect(to_the_end=True):
        news = collector.take_news()
        with sessions.begin() as session:
            lifecycle.store_news(session, lease, news)
    if run_dir.checkpoints.is_dir():
        keep = job.spec["training"]["keep_checkpoints"]
        store = Store(settings.store_location)
        shipper = CheckpointShipper(
            sessions, store, lease, run_dir, attempt=job.attempt, keep=keep, stored_steps=stored
        )
        ship_rest(shipper, run_dir, settings.lease_seconds / 2)
    with sessions.begin() as session:
        lifecycle.give_back(session, lease, lifecycle.describe_lost_worker(job), build_retries(settings))
