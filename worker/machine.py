"""Locks of this machine: they tell who lives, and they keep two attempts from sharing a card.

    HOME/locks/HOSTNAME/owners/ID     held while the pool process ID lives
    HOME/locks/HOSTNAME/gpus/N        held while a pool process or a runner uses GPU N

The kernel lets go of a lock with the last process that holds it, however that ends.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.ids import new_id
from jobs.settings import Settings

HOSTNAME = socket.gethostname()


def get_owners_dir(settings: Settings) -> Path:
    return settings.locks_dir / HOSTNAME / "owners"


def get_gpus_dir(settings: Settings) -> Path:
    return settings.locks_dir / HOSTNAME / "gpus"


class Owner:
    """A pool process, as leases name it."""

    def __init__(self, settings: Settings) -> None:
        self.id = new_id("worker")
        folder = get_owners_dir(settings)
        folder.mkdir(parents=True, exist_ok=True)
        # Locked before it has its name: whoever looks for dead owners must not find it free.
        unnamed = folder / f".{self.id}"
        lock = try_to_lock(unnamed)
        assert lock is not None
        self.lock = lock
        unnamed.rename(folder / self.id)


def is_owner_alive(settings: Settings, owner: str) -> bool:
    """On whatever machine shares this home: hostnames of containers change."""
    for path in settings.locks_dir.glob(f"*/owners/{owner}"):
        lock = try_to_lock(path)
        if lock is None:
            return True
        os.close(lock)
    return False


def try_to_lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None when somebody else holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def waiting_for_lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
