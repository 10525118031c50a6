"""Checkpoints on their way to the store, from which any worker can go on, and back."""

import hashlib
import logging
import shutil
import tarfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from jobs import lifecycle, repository
from jobs.database import LOST_DATABASE, Sessions
from jobs.errors import LeaseLost
from jobs.ids import new_id
from jobs.lifecycle import Lease
from jobs.models import Checkpoint, Json
from jobs.store import Store, StoreUnavailable
from trainer_core import checkpoints
from trainer_core.run_dir import RunDir

logger = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""After the store did not answer."""
_PLAN = "plan.json"


class CheckpointShipper:
    """Puts what a run saves into the store, in a thread of its own: a slow store must not hold up anything else."""

    def __init__(
        self,
        sessions: Sessions,
        store: Store,
        lease: Lease,
        run_dir: RunDir,
        *,
        attempt: int,
        keep: int,
        stored_steps: Iterable[int] = (),
    ) -> None:
        """`stored_steps`: those of the job's checkpoints that are in the store."""
        self._sessions = sessions
        self._store = store
        self._lease = lease
        self._run_dir = run_dir
        self._attempt = attempt
        self._keep = keep
        self._done = set(stored_steps)
        self._seen: set[str] = set()
        self._wanted = threading.Event()
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def wake_if_new(self) -> None:
        """Look for new checkpoints when the folder has changed. Returns at once."""
        names = {path.name for path in self._run_dir.checkpoints.glob("step-*")}
        if names != self._seen:
            self._seen = names
            self._wanted.set()

    def finish(self, seconds: float) -> bool:
        """Ship what is left, for at most so long. False when something could not be shipped."""
        self._is_ending = True
        self._wanted.set()
        self._thread.join(seconds)
        return not self._thread.is_alive() and not self._list_unshipped()

    def _run(self) -> None:
        while not self._is_ending:
            self._wanted.wait()
            self._wanted.clear()
            while not self._ship_all() and not self._is_ending:
                self._wanted.wait(RETRY_SECONDS)
                self._wanted.clear()  # Or it would try again without a pause.
        self._ship_all()

    def _list_unshipped(self) -> list[checkpoints.Checkpoint]:
        found = checkpoints.list_checkpoints(self._run_dir.checkpoints)
        return [checkpoint for checkpoint in reversed(found) if checkpoint.step not in self._done]

    def _ship_all(self) -> bool:
        """False when something is to be tried again."""
        for checkpoint in self._list_unshipped():
            try:
                self._ship(checkpoint)
            except LeaseLost:
                return True
            except FileNotFoundError:  # The trainer made room for a newer one.
                logger.info("%s: step %d is gone before it was shipped", self._lease.job_id, checkpoint.step)
            except (OSError, StoreUnavailable, *LOST_DATABASE) as error:
                logger.warning("%s: step %d is not in the store: %s", self._lease.job_id, checkpoint.step, error)
                return False
            except Exception:  # The thread must live on: the next checkpoint may fare better.
                logger.exception("%s: step %d is not in the store", self._lease.job_id, checkpoint.step)
                return False
            self._done.add(checkpoint.step)
        return True

    def _ship(self, checkpoint: checkpoints.Checkpoint) -> None:
        archive = self._run_dir.path / f"step-{checkpoint.step}.tar"
        # A new name each time: what a row tells of must never be written again.
        key = f"checkpoints/{self._lease.job_id}/step-{checkpoint.step}.{new_id('object')}.tar"
        with self._sessions.begin() as session:
            lifecycle.find_wish(session, self._lease)  # Nothing is stored for a job that is not ours any more.
        try:
            _write_archive(archive, checkpoint, self._run_dir)
            written = self._store.put(archive, key)
        finally:
            archive.unlink(missing_ok=True)
        row: Json = {"step": checkpoint.step, "store_key": key, "metrics": checkpoint.metrics}
        row |= {"num_bytes": written.num_bytes, "sha256": written.sha256}
        try:
            with self._sessions.begin() as session:
                is_new = lifecycle.store_checkpoint(session, self._lease, row)
                old = _list_superfluous(repository.list_checkpoints(session, self._lease.job_id), self._keep)
                lifecycle.remove_checkpoints(session, self._lease, [one.id for one in old])
        except LeaseLost:
            self._delete([key])
            raise
        self._delete([one.store_key for one in old] + ([] if is_new else [key]))

    def _delete(self, keys: list[str]) -> None:
        """Objects that no row tells of. One that stays takes room, and does no harm."""
        for key in keys:
            try:
                self._store.delete(key)
            except Exception:  # Each kind of store has errors of its own.
                logger.exception("%s stays in the store", key)


def ship_rest(shipper: CheckpointShipper, run_dir: RunDir, seconds: float) -> None:
    """The run is over: once all it saved is in the store, the copies here only take room."""
    if shipper.finish(seconds):
        shutil.rmtree(run_dir.checkpoints, ignore_errors=True)


def fetch_checkpoint(sessions: Sessions, store: Store, lease: Lease, run_dir: RunDir) -> list[int]:
    """Bring the newest checkpoint that is whole into the run folder, and the best one beside it. Returns their steps.

    A damaged one is removed, with an event, and the one before it taken. Raises StoreUnavailable, LeaseLost.
    """
    with sessions() as session:
        stored = repository.list_checkpoints(session, lease.job_id)
    best = _find_best(stored)
    newest, fetched = None, []
    for row in stored:
        if newest is not None and (row is not best or row.step == newest.step):
            continue
        damage = _fetch(store, row, run_dir)
        with sessions.begin() as session:
            if damage is not None:
                message = f"the checkpoint at step {row.step} is damaged ({damage}) and passed over"
                lifecycle.note(session, lease, "checkpoint_damaged", message, step=row.step)
                lifecycle.remove_checkpoints(session, lease, [row.id])
                continue
            fetched.append(row.step)
            if newest is None:
                newest = row
                lifecycle.record_resume(session, lease, row.step)
    return fetched


def _fetch(store: Store, row: Checkpoint, run_dir: RunDir) -> str | None:
    """What is wrong with a stored checkpoint; None when it is in the run folder now."""
    archive = run_dir.path / f"step-{row.step}.tar"
    target = run_dir.checkpoints / f"step-{row.step}"
    if not store.exists(row.store_key):
        return "it is not in the store"
    try:
        store.fetch(row.store_key, archive)
        if _hash_file(archive) != row.sha256:  # On its way, perhaps: what is thrown away does not come back.
            store.fetch(row.store_key, archive)
        if _hash_file(archive) != row.sha256:
            return "it is not what was put into the store"
        _unpack(archive, target, run_dir)
    finally:
        archive.unlink(missing_ok=True)
    found = [one for one in checkpoints.list_checkpoints(run_dir.checkpoints) if one.step == row.step]
    damage = checkpoints.find_damage(found[0]) if found else "it has no manifest"
    if damage is not None:
        shutil.rmtree(target)
    return damage


def _write_archive(path: Path, checkpoint: checkpoints.Checkpoint, run_dir: RunDir) -> None:
    """The files that the manifest names, and the plan, when memory or the loss changed it on the way."""
    with tarfile.open(path, "w") as archive:
        for name in (*checkpoint.files, "manifest.json"):
            archive.add(checkpoint.path / name, name)
        plan = run_dir.find_plan()
        if plan is not None and plan.changes:
            archive.add(run_dir.plan, _PLAN)


def _unpack(archive: Path, target: Path, run_dir: RunDir) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as files:
        files.extractall(target, filter="data")
    plan = target / _PLAN
    if plan.exists():
        plan.replace(run_dir.plan)


def _find_best(stored: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest validation loss, the earlier of equals."""
    validated = [row for row in stored if "eval_loss" in row.metrics]
    return min(validated, key=lambda row: (row.metrics["eval_loss"], row.step), default=None)


def _list_superfluous(stored: Sequence[Checkpoint], keep: int) -> list[Checkpoint]:
    """All but the newest `keep` and the best."""
    best = _find_best(stored)
    return [row for row in stored[keep:] if row is not best]


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
