"""Pages of lists: ids sort by time, so that the last id of a page is the cursor of the next."""

from typing import Any

from sqlalchemy import ColumnElement, Select
from sqlalchemy.orm import InstrumentedAttribute


def page_of_newest(
    query: Select[Any], key: ColumnElement[str] | InstrumentedAttribute[str], after: str | None, limit: int
) -> Select[Any]:
    """Newest first; up to `limit` older than `after`."""
    if after is not None:
        query = query.where(key < after)
    return query.order_by(key.desc()).limit(limit)


def page_of_oldest(
    query: Select[Any], key: ColumnElement[str] | InstrumentedAttribute[str], after: str | None, limit: int
) -> Select[Any]:
    """Oldest first; up to `limit` newer than `after`."""
    if after is not None:
        query = query.where(key > after)
    return query.order_by(key).limit(limit)
