"""What a job, a dataset and an attempt can be: pure data.

             ┌───────────── paused <── pausing
             v                ^           ^
validating ─> queued ─> starting ─> running ─> succeeded
    │           ^          │           │
    │           │          v           v
    └────────── │ ──────> stopping ────┴─> cancelled | failed
    ^           └───────────┘  (again, after what was nobody's fault)
    └── held <── running | pausing | stopping: what the safety checks found waits for a person
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
    """A client wants it paused; the trainer saves and ends."""
    PAUSED = "paused"
    """No worker owns it; it waits to be resumed."""
    STOPPING = "stopping"
    """The trainer's processes are being ended."""
    HELD = "held"
    """No worker owns it; people decide about what the safety checks found."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_S = JobStatus

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    _S.VALIDATING: frozenset({_S.QUEUED, _S.PAUSED, _S.CANCELLED, _S.FAILED}),
    _S.QUEUED: frozenset({_S.STARTING, _S.PAUSED, _S.CANCELLED, _S.FAILED}),
    _S.STARTING: frozenset({_S.RUNNING, _S.STOPPING, _S.PAUSING, _S.QUEUED, _S.FAILED, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.STOPPING, _S.PAUSING, _S.HELD, _S.QUEUED, _S.SUCCEEDED, _S.FAILED, _S.CANCELLED}),
    _S.PAUSING: frozenset({_S.STOPPING, _S.PAUSED, _S.HELD, _S.SUCCEEDED, _S.FAILED, _S.CANCELLED}),
    _S.PAUSED: frozenset({_S.VALIDATING, _S.QUEUED, _S.FAILED, _S.CANCELLED}),
    _S.STOPPING: frozenset({_S.QUEUED, _S.PAUSED, _S.HELD, _S.SUCCEEDED, _S.FAILED, _S.CANCELLED}),
    _S.HELD: frozenset({_S.QUEUED, _S.FAILED, _S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}
"""Every legal change of a job's status."""

FINAL = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED})
"""A final status never changes."""

OWNED = frozenset({_S.STARTING, _S.RUNNING, _S.PAUSING, _S.STOPPING})
"""A worker holds the job's lease."""


class StopReason(StrEnum):
    """Why a worker ends a trainer that would have gone on."""

    CANCELLED = "cancelled"
    PAUSED = "paused"
    WORKER_STOPPED = "worker_stopped"
    """Its worker shuts down: a deploy, or the end of the machine's time."""
    TIME_LIMIT = "time_limit_exceeded"
    STALLED = "stalled"
    """It lives and makes no step."""
    DISK_FULL = "disk_full"
    """The disk is nearly full: better now than in the middle of a checkpoint."""
    DATABASE_LOST = "database_lost"
    """The worker could not renew its lease for so long that another may soon take the job."""


class FailureReason(StrEnum):
    """Why an attempt failed, where the trainer itself gave no code."""

    DATASET_REJECTED = "dataset_rejected"
    MODEL_UNAVAILABLE = "model_unavailable"
    TRAINER_DIED = "trainer_died"
    TRAINER_KILLED = "trainer_killed"
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel ended the trainer because the host's or the container's memory ran out."""
    TRAINER_CRASHED = "trainer_crashed"
    """A signal of its own making, such as SIGSEGV."""
    RUNNER_LOST = "runner_lost"
    """The process around the trainer was ended from outside."""
    STORE_UNAVAILABLE = "store_unavailable"
    SAFETY_REJECTED = "safety_rejected"
    """A person rejected what the safety checks found."""
    NO_PROGRESS = "no_progress"
    TOO_MANY_RESTARTS = "too_many_restarts"
    WORKER_LOST = "worker_lost"
    INTERNAL_ERROR = "internal_error"


class Fault(StrEnum):
    """Whose fault the end of an attempt is; it decides whether and how often the job is tried again."""

    NONE = "none"
    """Nobody's, such as a deploy: tried again at once, and not counted."""
    INFRASTRUCTURE = "infrastructure"
    """A machine's, a network's: tried again, a limited number of times."""
    TRAINING = "training"
    """A hang or a crash of the training: tried again while it makes progress in between."""
    USER = "user"
    """Of the job, its data or its settings: the same again would end the same."""


class DatasetStatus(StrEnum):
    VALIDATING = "validating"
    READY = "ready"
    REJECTED = "rejected"


class UploadStatus(StrEnum):
    """Of a file that comes in parts."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class PhiPolicy(StrEnum):
    """What becomes of a dataset in which identifiers of patients were found."""

    REPORT = "report"
    """It may be trained on; what comes of it is not released before a named person attests."""
    REJECT = "reject"
    REPLACE = "replace"
    """They are replaced by placeholders; what the rules still find counts as under `report`."""
    OFF = "off"
    """Nobody looks: a named person attested at the upload why not."""


class OverlapPolicy(StrEnum):
    """What becomes of a dataset with duplicates, questions of benchmarks or safety probes."""

    REPORT = "report"
    """It may be trained on."""
    REJECT = "reject"
    OFF = "off"
    """Nobody looks."""


class AdapterState(StrEnum):
    CANDIDATE = "candidate"
    """Verified by its job; nobody released it yet."""
    APPROVED = "approved"
    """A person approved it; the gate was green."""
    RELEASED = "released"
    """For everybody who may use this service."""
    REJECTED = "rejected"
    """Not to be used; also one that was released and is withdrawn."""


ADAPTER_CHANGES: dict[AdapterState, frozenset[AdapterState]] = {
    AdapterState.CANDIDATE: frozenset({AdapterState.APPROVED, AdapterState.REJECTED}),
    AdapterState.APPROVED: frozenset({AdapterState.RELEASED, AdapterState.REJECTED}),
    AdapterState.RELEASED: frozenset({AdapterState.REJECTED}),
    AdapterState.REJECTED: frozenset(),
}


class ExportStatus(StrEnum):
    """Of an adapter that is merged into its base."""

    MERGING = "merging"
    """A worker does it, or will."""
    READY = "ready"
    FAILED = "failed"


class ReviewCause(StrEnum):
    HELD = "held"
    """The job waits for it."""
    ADAPTER = "adapter"
    """Somebody wants to release the adapter of a job that succeeded."""


class ReviewState(StrEnum):
    OPEN = "open"
    AWAITING_SECOND = "awaiting_second"
    """One person approved it; another one must, too."""
    APPROVED = "approved"
    """Two persons accepted the findings."""
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"
    """Its job was cancelled."""
