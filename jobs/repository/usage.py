"""What jobs took of the machines, summed over their attempts."""

import datetime
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Float, Row, ScalarSelect, bindparam, cast, func, select
from sqlalchemy.orm import Session

from jobs.models import ApiKey, Attempt, Job, Metric

_jobs, _attempts, _metrics, _keys = (table.__table__.c for table in (Job, Attempt, Metric, ApiKey))
_since, _until = (bindparam(name, type_=_attempts.started_at.type) for name in ("since", "until"))
_end = func.coalesce(_attempts.ended_at, func.now())
_hours = (
    cast(func.extract("epoch", func.least(_end, _until) - func.greatest(_attempts.started_at, _since)), Float) / 3600
)


def list_usage(
    session: Session,
    group_by: ColumnElement[Any],
    *,
    since: datetime.datetime,
    until: datetime.datetime,
    key_id: str | None = None,
) -> Sequence[Row[Any]]:
    """Per value of a column of jobs (`KEY`, `MODEL`, `STATUS`, `get_tag`) that had an attempt within the time: `value`,
    the number of `jobs` and `attempts`, `gpu_hours`, `cpu_hours` of attempts without a GPU, and `tokens`.

    Of the transaction's tenant, the largest first; with `key_id`, of that key's jobs only. An attempt counts with the
    part of it that lies within the time; one that runs, until now.
    """
    totals = (
        func.count(_jobs.id.distinct()).label("jobs"),
        func.count().label("attempts"),
        func.coalesce(func.sum(_hours * _jobs.num_gpus), 0.0).label("gpu_hours"),
        func.coalesce(func.sum(_hours).filter(_jobs.num_gpus == 0), 0.0).label("cpu_hours"),
        func.coalesce(func.sum(func.greatest(_tokens_at(_until) - _tokens_at(_since), 0)), 0).label("tokens"),
    )
    query = (
        select(group_by.label("value"), *totals)
        .join_from(Attempt.__table__, Job.__table__, _jobs.id == _attempts.job_id)
        .where(_attempts.started_at < _until, _end > _since)
        .group_by(group_by)
        .order_by(*(name.desc() for name in (totals[2], totals[3])), group_by)
    )
    if key_id is not None:
        query = query.where(_jobs.created_by == key_id)
    return session.connection().execute(query, {"since": since, "until": until}).all()


KEY, MODEL, STATUS = _jobs.created_by, _jobs.model, _jobs.status


def get_tag(name: str) -> ColumnElement[Any]:
    """A value of the jobs' metadata; null where a job has none of that name."""
    value: ColumnElement[Any] = _jobs.metadata[name].astext
    return value


def list_key_names(session: Session, tenant_id: str) -> dict[str, str]:
    """By id, of a tenant's keys."""
    return {row[0]: row[1] for row in session.execute(select(_keys.id, _keys.name).where(_keys.tenant_id == tenant_id))}


def _tokens_at(time: ColumnElement[Any]) -> ColumnElement[int]:
    """How many tokens the job had trained on when the attempt was as far as at that time.

    Metrics count a job's tokens on over its attempts, from the checkpoint that an attempt goes on from.
    """
    mine = _newest(_metrics.attempt == _attempts.number, _metrics.created_at < time)
    resumed = _newest(_metrics.attempt < _attempts.number, _metrics.step <= _attempts.resumed_from_step)
    return func.coalesce(mine, resumed, 0)


def _newest(*conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    newest = select(_metrics.tokens).where(_metrics.job_id == _attempts.job_id, *conditions)
    return newest.order_by(_metrics.seq.desc()).limit(1).correlate(Attempt.__table__).scalar_subquery()
