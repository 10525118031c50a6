"""Events: what a run tells about itself, one JSON object a line in `events.jsonl`. Torch-free.

`parse_event` is for the reader (the worker), `Reporter` for the writer (rank 0, and the launching process for errors).
"""

import datetime
import io
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter


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


Event = Annotated[PhaseEvent | MetricsEvent | CheckpointEvent | NoticeEvent | ErrorEvent, Field(discriminator="type")]
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
