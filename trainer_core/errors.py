"""Errors of the trainer.

TrainerError               code, message, remedy
├── ConfigurationError     what was asked for cannot work
├── ModelError             the base model cannot be used
├── DataError              the rows cannot be used
├── VerificationError      the adapter is not what it should be
├── GuardError             the guard model gave no verdict on answers
└── TrainingStopped        asked to stop; started again, the run goes on
    └── TrainingHeld       a person has to look at what safety probes found; then it goes on
"""

import copyreg
import errno
from typing import Any


class TrainerError(Exception):
    """Ends a run with a reason that a person understands."""

    def __init__(self, code: str, message: str, *, remedy: str = "", **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process hands it to its parent whole, whatever a subclass's constructor takes."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConfigurationError(TrainerError):
    """What was asked for cannot work."""


class ModelError(TrainerError):
    """The base model cannot be used."""


class DataError(TrainerError):
    """The rows cannot be used."""


class VerificationError(TrainerError):
    """The adapter is not what it should be."""


class GuardError(TrainerError):
    """The guard model gave no verdict: the answers are not judged."""


class TrainingStopped(TrainerError):
    """Somebody asked the run to stop; started again, it goes on from its last checkpoint."""

    def __init__(self, message: str) -> None:
        super().__init__("stopped", message, remedy="Start the run again to go on.")


class TrainingHeld(TrainingStopped):
    """Safety probes found what nobody accepted; a checkpoint holds all that was learned."""

    def __init__(self, message: str, **details: Any) -> None:
        remedy = "Review the findings; started again with them accepted, the run goes on."
        TrainerError.__init__(self, "safety_held", message, remedy=remedy, **details)


def is_out_of_memory(error: BaseException) -> bool:
    """By its many names: CUDA's allocator has an error of its own, the CPU's raises a plain RuntimeError."""
    text = str(error).lower()
    names = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError) or any(name in text for name in names)


_DEVICE_FAILURES = ("cuda error", "cudnn error", "cublas error", "nccl error", "ncclsystemerror", "ecc error", "gloo")
"""What drivers and collectives say of themselves: another start, perhaps on another card, may work."""


def describe(error: BaseException) -> TrainerError:
    """Any exception as a TrainerError: memory, disk and devices by their many names, else `internal_error`."""
    if isinstance(error, TrainerError):
        return error
    if is_out_of_memory(error):
        return TrainerError(
            "out_of_memory",
            f"Memory ran out: {error}",
            remedy="Lower micro_batch_size or max_seq_len, set gradient_checkpointing, or quantise the base.",
        )
    if is_disk_full(error):
        remedy = "Free some space: a dry run tells how much a run takes. The last checkpoint is whole."
        return TrainerError("disk_full", f"The disk is full: {error}", remedy=remedy)
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return TrainerError(
            "file_not_accessible", str(error), remedy="Check who owns the folder, and how it is mounted."
        )
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return TrainerError("file_not_found", str(error), remedy="Check the paths in spec.json.")
    text = f"{type(error).__name__}: {error}"
    if any(name in text.lower() for name in _DEVICE_FAILURES):
        remedy = "Look at the host's kernel log for the card's Xid, and at the network between the hosts."
        return TrainerError("device_failed", text, remedy=remedy)
    return TrainerError("internal_error", text)


def is_disk_full(error: BaseException) -> bool:
    """Libraries in other languages give the system's words only."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in str(error)
