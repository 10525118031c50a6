"""A job's way to its end, on standard error: a bar in a terminal, a line for each change elsewhere."""

import datetime
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from api.schemas import JobRead
from jobs.status import JobStatus
from medtune import ApiError

_TENTHS = 10
"""Percent from one line to the next."""


class JobProgress:
    """Shows the job as it was read last."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: object = None
        self._bar: Progress | None = None
        if console.is_terminal:
            texts = [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("steps", "loss", "eta")]
            status = TextColumn("{task.description}", markup=False)
            self._bar = Progress(status, BarColumn(), *texts, TimeElapsedColumn(), console=console)
            self._task = self._bar.add_task("", total=None, steps="", loss="", eta="")

    def show(self, job: JobRead) -> None:
        if self._bar is None:
            self._print_change(job)
            return
        self._bar.update(
            self._task,
            description=_describe_status(job),
            completed=job.progress.step if job.progress else 0,
            total=job.progress.max_steps if job.progress else None,
            steps=describe_steps(job),
            loss=describe_loss(job),
            eta=_describe_eta(job),
        )

    def tell_lost(self, error: ApiError) -> None:
        """That the service is away, and that this goes on."""
        self._console.print(f"{error.message}; trying again", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _print_change(self, job: JobRead) -> None:
        """A log wants a line when there is something new, not each second."""
        tenth = int(job.progress.percent // _TENTHS) if job.progress else 0
        status = _describe_status(job)
        if (status, tenth) != self._shown:
            self._shown = (status, tenth)
            parts = [f"{job.id} {status}", describe_steps(job), describe_loss(job), _describe_eta(job)]
            line = ", ".join(part for part in parts if part)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def describe_steps(job: JobRead) -> str:
    return f"step {job.progress.step}/{job.progress.max_steps}" if job.progress else ""


def describe_loss(job: JobRead) -> str:
    loss = (job.metrics or {}).get("loss")
    return f"loss {loss:.3f}" if loss is not None else ""


def _describe_eta(job: JobRead) -> str:
    if job.status != JobStatus.RUNNING or job.progress is None or job.progress.eta_seconds is None:
        return ""
    return f"ETA {datetime.timedelta(seconds=round(job.progress.eta_seconds))}"


def _describe_status(job: JobRead) -> str:
    """With what it does, or waits for."""
    if job.status == JobStatus.RUNNING and job.progress and job.progress.phase != "training":
        return f"{job.status} ({job.progress.phase})"
    if job.status == JobStatus.PAUSED:
        return f"{job.status}; `medtune resume {job.id}` lets it go on"
    return f"{job.status} ({job.queue.reason})" if job.queue else job.status.value
