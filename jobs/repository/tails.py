"""What happened to many jobs at once, each from a cursor of its own: the tails that one API process follows."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import BigInteger, Row, Select, Text, bindparam, func, select, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from jobs.models import Base, Event, Job, LogChunk, Metric
from jobs.status import JobStatus

_jobs = Job.__table__.c


def list_job_statuses(session: Session, job_ids: Collection[str]) -> dict[str, JobStatus]:
    """Of those that exist."""
    statuses = select(_jobs.id, _jobs.status).where(_jobs.id == func.any(bindparam("job_ids", type_=ARRAY(Text))))
    rows = session.connection().execute(statuses, {"job_ids": list(job_ids)})
    return {row.id: row.status for row in rows}


def list_new_events(session: Session, places: Sequence[tuple[str, int]], limit: int) -> list[list[Row[Any]]]:
    """For each place (a job's id, and the last `seq` that is known of it) up to `limit` events after it."""
    return _list_after(session, Event, places, limit)


def list_new_metrics(session: Session, places: Sequence[tuple[str, int]], limit: int) -> list[list[Row[Any]]]:
    """As list_new_events."""
    return _list_after(session, Metric, places, limit)


def list_new_log_chunks(session: Session, places: Sequence[tuple[str, int]], limit: int) -> list[list[Row[Any]]]:
    """As list_new_events."""
    return _list_after(session, LogChunk, places, limit)


def _list_after(
    session: Session, table: type[Base], places: Sequence[tuple[str, int]], limit: int
) -> list[list[Row[Any]]]:
    job_ids, after = zip(*places, strict=True)
    parameters = {"job_ids": list(job_ids), "after": list(after), "limit": limit}
    found: list[list[Row[Any]]] = [[] for _ in places]
    for row in session.connection().execute(_AFTER[table], parameters):
        found[row.place - 1].append(row)
    return found


# --- Statements, built once -------------------------------------------------------------------------------------


def _build_after(table: type[Base]) -> Select[Any]:
    """One probe of the index for each place."""
    rows = table.__table__.c
    places = (
        func.unnest(bindparam("job_ids", type_=ARRAY(Text)), bindparam("after", type_=ARRAY(BigInteger)))
        .table_valued("job_id", "after", with_ordinality="place", name="places")
        .render_derived()
    )
    found = (
        select(*rows)
        .where(rows.job_id == places.c.job_id, rows.seq > places.c.after)
        .order_by(rows.seq)
        .limit(bindparam("limit", type_=BigInteger))
        .lateral("found")
    )
    return (
        select(places.c.place, *found.c).select_from(places.join(found, true())).order_by(places.c.place, found.c.seq)
    )


_AFTER: dict[type[Base], Select[Any]] = {table: _build_after(table) for table in (Event, Metric, LogChunk)}
