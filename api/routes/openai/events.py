"""A job's events with the metrics of its steps among them, the newest first, as OpenAI's clients list them."""

from typing import Literal

from sqlalchemy.orm import Session

from api.routes.openai import ids
from api.routes.openai.schemas import JobEvent, rename_metrics, to_seconds
from jobs import repository
from jobs.models import Event, Metric
from jobs.status import JobStatus


def list_job_events(session: Session, job_id: str, *, after: str | None, limit: int) -> list[JobEvent]:
    """Raises NotFound, InvalidRequest. Of the same moment, an event is newer than metrics."""
    job = repository.get_job(session, job_id)
    cursor = None if after is None else _find(session, job_id, after)
    if isinstance(cursor, Event):
        events = repository.list_newest_events(session, job_id, limit=limit, before=cursor)
        metrics = repository.list_newest_metrics(session, job_id, limit=limit, until=cursor.created_at)
    elif cursor is not None:
        events = repository.list_newest_events(session, job_id, limit=limit, before=cursor.created_at)
        metrics = repository.list_newest_metrics(session, job_id, limit=limit, before=cursor.seq)
    else:
        events = repository.list_newest_events(session, job_id, limit=limit)
        metrics = repository.list_newest_metrics(session, job_id, limit=limit)
    rows: list[Event | Metric] = [*events, *metrics]
    merged = sorted(rows, key=_get_place, reverse=True)[:limit]
    max_steps = (job.progress or {}).get("max_steps")
    return [_read_event(row) if isinstance(row, Event) else _read_metric(row, max_steps) for row in merged]


def _find(session: Session, job_id: str, text: str) -> Event | Metric:
    number = ids.read_event_id(text)
    found: Event | Metric | None
    if isinstance(number, str):
        found = repository.find_event(session, job_id, number)
    elif text == ids.write_metric_id(job_id, number):
        found = repository.find_metric(session, job_id, number)
    else:
        found = None
    if found is None:
        raise ids.refuse_cursor(text)
    return found


def _get_place(row: Event | Metric) -> tuple[float, bool, int]:
    return row.created_at.timestamp(), isinstance(row, Event), row.seq


def _read_event(event: Event) -> JobEvent:
    return JobEvent(
        id=ids.write_event_id(event.id),
        created_at=to_seconds(event.created_at),
        level=_get_level(event),
        message=event.message,
        type="message",
        data=event.data,
    )


def _get_level(event: Event) -> Literal["info", "warn", "error"]:
    if event.type == "error" or event.data.get("to") == JobStatus.FAILED:
        return "error"
    return "warn" if event.type == "notice" or event.data.get("to") == JobStatus.HELD else "info"


def _read_metric(metric: Metric, max_steps: int | None) -> JobEvent:
    values = rename_metrics(metric.values)
    losses = [
        f"{words} {values[name]:.4f}"
        for name, words in (("train_loss", "training loss"), ("valid_loss", "validation loss"))
        if name in values
    ]
    total = "" if max_steps is None else f"/{max_steps}"
    return JobEvent(
        id=ids.write_metric_id(metric.job_id, metric.seq),
        created_at=to_seconds(metric.created_at),
        level="info",
        message=f"Step {metric.step}{total}: {', '.join(losses)}",
        type="metrics",
        data={"step": metric.step, "total_steps": max_steps, "epoch": metric.epoch, **values},
    )
