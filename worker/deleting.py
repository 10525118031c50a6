"""The files of what was deleted or given up: objects of the store, and work folders of attempts on this machine.

Both may be done twice, by anybody, and after a crash they are done again: the record says what is left.
"""

import contextlib
import logging
import shutil

from jobs import lifecycle, repository
from jobs.database import LOST_DATABASE, Sessions
from jobs.models import Deletion
from jobs.settings import Settings
from jobs.status import UploadStatus
from jobs.store import Store, StoreUnavailable
from worker.attempt import read_owner
from worker.machine import HOSTNAME, is_owner_alive

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 100
"""Deletions and uploads whose objects one ring removes."""


def delete_objects(sessions: Sessions, store: Store) -> None:
    """Of everything that was deleted and of which the store still has something."""
    with sessions() as session:
        deletions = repository.list_deletions_with_files(session, MAX_AT_ONCE)
    for deletion in deletions:
        try:
            delete_objects_of(sessions, store, deletion)
        except (StoreUnavailable, *LOST_DATABASE) as error:
            logger.warning("%s: its files are not deleted yet: %s", deletion.subject_id, error)


def expire_uploads(sessions: Sessions, store: Store) -> None:
    """Those that nobody completed in time: the bytes first, so that a crash in between loses no trace of them."""
    try:
        for _ in range(MAX_AT_ONCE):
            with sessions.begin() as session:
                upload = repository.lock_upload_that_is_over(session)
                if upload is None:
                    return
                store.sweep(upload.store_folder)
                upload.status = UploadStatus.EXPIRED
    except (StoreUnavailable, *LOST_DATABASE) as error:
        logger.warning("the parts of uploads that are over are not deleted yet: %s", error)


def delete_objects_of(sessions: Sessions, store: Store, deletion: Deletion) -> None:
    """The record first, then the objects, then that they are gone.

    Raises StoreUnavailable, and a database's errors; then somebody looks again.
    """
    found = {key: size for folder in deletion.store_folders for key, size in store.list_sizes(folder).items()}
    if deletion.completed_at is None:
        with sessions.begin() as session:
            lifecycle.note_files(session, deletion.id, found)
    for folder in deletion.store_folders:
        store.sweep(folder)
    if deletion.completed_at is None:
        with sessions.begin() as session:
            lifecycle.note_files_deleted(session, deletion.id)
    logger.info("%s: deleted, %d objects", deletion.subject_id, len(found))


def delete_late_objects(sessions: Sessions, store: Store, job_id: str) -> None:
    """What somebody who had lost the job put into the store after it was deleted."""
    with sessions() as session:
        deletion = repository.find_deletion_of(session, job_id)
    if deletion is not None:
        delete_objects_of(sessions, store, deletion)


def delete_work_folders(sessions: Sessions, settings: Settings) -> None:
    """Those on this machine; one in which a process still works waits for its end."""
    with sessions() as session:
        deletions = repository.list_deletions_with_work_folders(session)
    for deletion in deletions:
        for folder in deletion.work_folders:
            if folder["deleted_at"] is None and _delete_work_folder(
                settings, deletion, folder["attempt"], folder["host"]
            ):
                with sessions.begin() as session:
                    lifecycle.note_work_folder_deleted(session, deletion.id, folder["attempt"])


def _delete_work_folder(settings: Settings, deletion: Deletion, attempt: int, host: str) -> bool:
    """Whether it is gone. What is not here may be on the machine that it was made on, and only that can tell."""
    path = settings.runs_dir / deletion.subject_id / f"attempt-{attempt}"
    if not path.exists():
        return host == HOSTNAME
    owner = read_owner(path)
    if owner is not None and is_owner_alive(settings, owner):
        return False
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # Another attempt's folder is in it, or it is gone.
        path.parent.rmdir()
    return not path.exists()
