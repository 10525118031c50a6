"""Events: what a run tells about itself, one JSON object a line in `events.jsonl`. Torch-free.

`parse_event` is for the reader (the worker), `Reporter` for the writer (rank 0, and the launching process for errors).
"""

import datetime
import io
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict


class _EventModel(BaseModel):
    version: Literal[1] = 1
    time: datetime.datetime = Field(default_factory=lambda: datetime.datetime.now(datetime.UTC))


class PhaseEvent(_EventModel):
    """The run entered a phase."""

    type: Literal["phase"] = "phase"
    phase: Literal[
        "starting", "preparing", "loading", "training", "evaluating", "saving", "verifying", "stopped", "finished"
    ]
    message: str = ""
    details: dict[str, Any] = {}


class MetricsEvent(_EventModel):
    """Numbers of one optimizer step. `values` holds loss, learning_rate, grad_norm, tokens_per_second, eval_loss..."""

    type: Literal["metrics"] = "metrics"
    step: int
    max_steps: int
    epoch: float
    tokens: int
    """Non-pad tokens trained on so far, over all processes."""
    eta_seconds: float | None = None
    values: dict[str, float]


class CheckpointEvent(_EventModel):
    """A checkpoint is complete on disk."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    """Relative to the run folder."""
    bytes: int
    metrics: dict[str, float] = {}


class NoticeEvent(_EventModel):
    """Something a person should know, and the run goes on."""

    type: Literal["notice"] = "notice"
    code: str
    message: str
    details: dict[str, Any] = {}


class ErrorEvent(_EventModel):
    """Why the run ends without an adapter."""

    type: Literal["error"] = "error"
    code: str
    message: str
    remedy: str = ""
    details: dict[str, Any] = {}


class SafetyProbes(TypedDict):
    """What was asked: the set, how many of it were answered, and by id why others were not."""

    version: str
    digest: str
    asked: int
    refused: dict[str, str]


class SafetyRules(TypedDict):
    version: str
    digest: str


class SafetyRound(TypedDict):
    """A line of safety_summary.jsonl, but for its time."""

    step: int
    """Of the weights that were asked."""
    is_last: bool
    """After the last step, of the adapter that is saved: every probe."""
    ok: bool
    """The answers were judged. False: nothing is known, and `error` says why."""
    error: str | None
    probes: SafetyProbes
    rules: SafetyRules
    guard: NotRequired[str | None]
    """The guard model's name, where one was asked beside the rules."""
    seconds: float
    summary: dict[str, Any] | None
    """trainer_core.safety.summary.Summary; null without judged answers."""


class SafetyFailure(TypedDict):
    """A line of safety_failures.jsonl, but for its time, step and chain."""

    probe_id: str
    check: str
    severity: str
    explanation: str
    outcome: str
    is_regression: bool
    """Critical, and the base passed the same check on the same question."""
    question: str
    answer: str
    """As the question without found identifiers, the first 2,000 characters."""
    answer_sha256: str
    """Of the whole answer as it was."""
    is_cut: bool
    """The limit of tokens ended it."""


class SafetyFinding(TypedDict):
    """What a person has to look at: (probe_id, check) is what an AcceptedFinding names."""

    probe_id: str
    """Empty: it is about all answers, or the round."""
    check: str
    """A check's code; `not_checked` where something could not be asked or judged."""
    severity: str
    explanation: str


class SafetyDetails(TypedDict):
    """All that a round's event tells; a worker needs no file beside it."""

    round: SafetyRound
    failures: list[SafetyFailure]
    """The first 300, the gravest first; safety_failures.jsonl has all."""
    num_failures: int
    escalation: Literal["hold", "stop"] | None
    """What the run does now because of the open findings; null goes on."""
    open_findings: list[SafetyFinding]
    """All that nobody accepted: critical failures, checks that became worse than the base's, not_checked."""


class SafetyEvent(_EventModel):
    """A round of safety probes."""

    type: Literal["safety"] = "safety"
    step: int
    ok: bool
    """The answers were judged; what was found is in the details. False: they could not be."""
    message: str
    details: SafetyDetails


Event = Annotated[
    PhaseEvent | MetricsEvent | CheckpointEvent | NoticeEvent | SafetyEvent | ErrorEvent, Field(discriminator="type")
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """One line of events.jsonl. Raises pydantic.ValidationError for anything else."""
    return _EVENT.validate_json(line)


class Reporter:
    """Appends events; each is one write, so that a reader never sees half a line of two writers.

    Without a path it says nothing: a rank that is not the first.
    """

    def __init__(self, path: Path | None) -> None:
        self._file: io.FileIO | None = None if path is None else path.open("ab", buffering=0)

    def report(self, event: Event) -> None:
        if self._file is not None:
            self._file.write(event.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
