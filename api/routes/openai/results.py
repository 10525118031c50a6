"""The result files of a job: its metrics as a table, made when somebody asks, and its adapter."""

import csv
import io
from collections.abc import Iterable, Sequence

from sqlalchemy.orm import Session

from api.routes.openai import ids
from api.routes.openai.ids import Result
from api.routes.openai.schemas import FileObject, rename_metrics, to_seconds
from jobs import repository
from jobs.models import Adapter, Metric

_BATCH = 10_000
_COLUMNS = (
    *("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"),
    *("epoch", "tokens", "learning_rate"),
)
"""The first five are OpenAI's; accuracies are not measured, so their cells are empty."""


def write_step_metrics(session: Session, job_id: str) -> bytes:
    """CSV, a line for each step. Of a step that was trained again after an interruption, the last time counts."""
    steps: dict[int, dict[str, float]] = {}
    after = 0
    while metrics := repository.list_metrics(session, job_id, after=after, limit=_BATCH):
        steps.update(_read_steps(metrics))
        after = metrics[-1].seq
        session.expunge_all()  # However many there are.
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(steps[step] for step in sorted(steps))
    return text.getvalue().encode()


def _read_steps(metrics: Sequence[Metric]) -> Iterable[tuple[int, dict[str, float]]]:
    for metric in metrics:
        place = {"step": metric.step, "epoch": metric.epoch, "tokens": metric.tokens}
        yield metric.step, {**rename_metrics(metric.values), **place}


def read_result_file(adapter: Adapter, result: Result, num_bytes: int) -> FileObject:
    return FileObject(
        id=ids.write_result_id(adapter.job_id, result),
        bytes=num_bytes,
        created_at=to_seconds(adapter.created_at),
        filename="step_metrics.csv" if result == Result.METRICS else f"{adapter.job_id}.tar.gz",
        purpose="fine-tune-results",
        status="processed",
    )
