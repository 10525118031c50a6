"""What the end of a trainer means: whose fault it was, and whether the job goes on. Pure."""

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from jobs.lifecycle import Ending
from jobs.models import Json
from jobs.status import FailureReason, Fault, StopReason
from trainer_core.errors import ConfigurationError, TrainerError
from trainer_core.reporting import ErrorEvent
from worker.launcher import Exit

STOPPED_WITH_CHECKPOINT = 75
"""The trainer's exit code when it was asked to stop, and can go on."""


SAFETY_HELD = "safety_held"
"""The code of the trainer's last word when its safety checks want a person's decision."""


class Fate(Enum):
    """What becomes of the job."""

    SUCCEED = "succeed"
    CANCEL = "cancel"
    GIVE_BACK = "give back"
    HOLD = "hold"
    FAIL = "fail"


@dataclass(frozen=True)
class Verdict:
    fate: Fate
    ending: Ending


_STOPPED: dict[StopReason, tuple[Fault, str]] = {
    StopReason.PAUSED: (Fault.NONE, "paused by request"),
    StopReason.WORKER_STOPPED: (Fault.NONE, "its worker was stopped"),
    StopReason.DATABASE_LOST: (Fault.NONE, "its worker could not reach the database for too long"),
    StopReason.DISK_FULL: (Fault.INFRASTRUCTURE, "the worker's disk is nearly full"),
    StopReason.STALLED: (Fault.TRAINING, "the run lived and made no step for too long"),
}
_TRAINING_FAULTS = {"rank_died", "device_failed"}
"""Errors of a trainer that may not come again."""
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


def judge(ending: Exit, stop: StopReason | None, error: ErrorEvent | None, log_tail: Iterable[str]) -> Verdict:
    """`stop`: why the worker stopped it, if it did; `error`: what the trainer said when it gave up."""
    code = ending.exit_code
    if stop == StopReason.CANCELLED:
        return Verdict(Fate.CANCEL, Ending(exit_code=code))
    if code == STOPPED_WITH_CHECKPOINT and error is not None and error.code == SAFETY_HELD:
        # Also when it was to stop for another reason: a run that goes on would pass over what was found.
        return Verdict(Fate.HOLD, Ending(_explain_error(error)[0], exit_code=code))
    if code == 0 and stop in (None, StopReason.PAUSED, StopReason.WORKER_STOPPED):
        return Verdict(Fate.SUCCEED, Ending(exit_code=0))
    if stop is None and ending.ended_by == "deadline":
        stop = StopReason.DATABASE_LOST
    if stop == StopReason.TIME_LIMIT:
        reason = {
            "code": stop,
            "message": "the job's time limit is used up",
            "remedy": "its last checkpoint is kept; retry it with a longer resources.time_limit",
        }
        return Verdict(Fate.FAIL, Ending(reason, Fault.USER, code))
    if stop is not None:
        fault, message = _STOPPED[stop]
        return Verdict(Fate.GIVE_BACK, Ending({"code": stop, "message": message}, fault, code))
    reason, fault = _explain(ending, error)
    fate = Fate.FAIL if fault == Fault.USER else Fate.GIVE_BACK
    return Verdict(fate, Ending({**reason, "log_tail": "\n".join(log_tail)}, fault, code))


def judge_release(error: TrainerError) -> Verdict:
    """A verified adapter could not be documented or signed. The key is the operator's, all else is the run's."""
    reason = {"code": error.code, "message": error.message, "remedy": error.remedy}
    if isinstance(error, ConfigurationError):
        return Verdict(Fate.GIVE_BACK, Ending(reason, Fault.INFRASTRUCTURE))
    return Verdict(Fate.FAIL, Ending(reason, Fault.USER))


def _explain(ending: Exit, error: ErrorEvent | None) -> tuple[Json, Fault]:
    code = ending.exit_code
    # The kernel counts for the whole host or container: only an end that it could have caused is its.
    is_killed = code is not None and _find_signal(code) == signal.SIGKILL
    if ending.oom_kills > 0 and (is_killed if error is None else error.code == "rank_died"):
        return {
            "code": FailureReason.OUT_OF_MEMORY,
            "message": "the kernel ended the trainer because the memory of its host or container ran out",
            "remedy": "lower micro_batch_size or max_seq_len, quantise the base, or give the worker more memory",
        }, Fault.USER
    if error is not None and error.code != "stopped":
        return _explain_error(error)
    if code is None:
        message = "the process around the trainer was ended from outside"
        return {"code": FailureReason.RUNNER_LOST, "message": message}, Fault.INFRASTRUCTURE
    if code == STOPPED_WITH_CHECKPOINT:
        message = "the trainer was asked to stop by somebody other than its worker"
        return {"code": FailureReason.TRAINER_KILLED, "message": message}, Fault.INFRASTRUCTURE
    number = _find_signal(code)
    if number is not None:
        return _explain_signal(number)
    return {
        "code": FailureReason.TRAINER_DIED,
        "message": f"the trainer ended with exit code {code} without a word of its own",
        "remedy": "its last lines are in log_tail",
    }, Fault.USER


def _explain_error(error: ErrorEvent) -> tuple[Json, Fault]:
    reason = {"code": error.code, "message": error.message, "remedy": error.remedy, "details": error.details}
    if error.code == StopReason.DISK_FULL:
        return reason, Fault.INFRASTRUCTURE
    return reason, Fault.TRAINING if error.code in _TRAINING_FAULTS else Fault.USER


def _explain_signal(number: int) -> tuple[Json, Fault]:
    name = _name_signal(number)
    if number in _CRASHES:
        return {
            "code": FailureReason.TRAINER_CRASHED,
            "message": f"the trainer crashed with {name}",
            "remedy": "a library or a driver failed: its last lines are in log_tail",
        }, Fault.TRAINING
    return {
        "code": FailureReason.TRAINER_KILLED,
        "message": f"the trainer was ended by {name} from outside",
        "remedy": "somebody or something on its host sent the signal; the kernel counted no lack of memory",
    }, Fault.INFRASTRUCTURE


def _find_signal(exit_code: int) -> int | None:
    """-N is signal N; a shell says 128 + N; torchrun's and DeepSpeed's launchers exit with -N, which is 256 - N."""
    if exit_code < 0:
        return -exit_code
    if exit_code > 256 - 32:
        return 256 - exit_code
    return exit_code - 128 if exit_code > 128 else None


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
