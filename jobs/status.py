"""What a job, a dataset and an attempt can be: pure data.

    validating ─> queued ─> starting ─> running ─> succeeded
        │           │          │           │
        └───────────┴──> stopping <────────┘ ──> cancelled | failed | queued (again)

`pausing`, `paused` and `held` are named already because clients rely on the list; nothing leads to them yet.
"""

from enum import StrEnum


class JobStatus(StrEnum):
    VALIDATING = "validating"
    """Waits for its dataset's check."""
    QUEUED = "queued"
    """Waits for a worker."""
    STARTING = "starting"
    """A worker owns it; the trainer loads."""
    RUNNING = "running"
    """The trainer trains, or its adapter is being verified."""
    PAUSING = "pausing"
    PAUSED = "paused"
    STOPPING = "stopping"
    """The trainer's processes are being ended."""
    HELD = "held"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_S = JobStatus

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    _S.VALIDATING: frozenset({_S.QUEUED, _S.CANCELLED, _S.FAILED}),
    _S.QUEUED: frozenset({_S.STARTING, _S.CANCELLED}),
    _S.STARTING: frozenset({_S.RUNNING, _S.STOPPING, _S.QUEUED, _S.FAILED, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.STOPPING, _S.QUEUED, _S.SUCCEEDED, _S.FAILED, _S.CANCELLED}),
    _S.PAUSING: frozenset(),
    _S.PAUSED: frozenset(),
    _S.STOPPING: frozenset({_S.QUEUED, _S.FAILED, _S.CANCELLED}),
    _S.HELD: frozenset(),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}
"""Every legal change of a job's status."""

FINAL = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED})
"""A final status never changes."""

OWNED = frozenset({_S.STARTING, _S.RUNNING, _S.STOPPING})
"""A worker holds the job's lease."""


class StopReason(StrEnum):
    """Why a worker ends a trainer that would have gone on."""

    CANCELLED = "cancelled"
    WORKER_STOPPED = "worker_stopped"


class FailureReason(StrEnum):
    """Why a job failed, where the trainer itself gave no code."""

    DATASET_REJECTED = "dataset_rejected"
    MODEL_UNAVAILABLE = "model_unavailable"
    TRAINER_DIED = "trainer_died"
    TRAINER_KILLED = "trainer_killed"
    WORKER_LOST = "worker_lost"
    INTERNAL_ERROR = "internal_error"


class DatasetStatus(StrEnum):
    VALIDATING = "validating"
    READY = "ready"
    REJECTED = "rejected"


class AdapterState(StrEnum):
    CANDIDATE = "candidate"
    """Verified by its job; nobody released it yet."""
