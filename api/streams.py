"""Tails of jobs: what `GET /jobs/{id}/stream` sends, found for all streams of this process at once.

A stream asks for what comes after its cursor, and asks again when its client took that: what a slow client did not take
is in the database and not in memory. The cursor is all that a stream is.
"""

import asyncio
import heapq
import logging
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastapi.sse import ServerSentEvent
from sqlalchemy import Row
from sqlalchemy.orm import Session

from api.history_schemas import read_event, read_log_chunk, read_metric
from jobs import repository
from jobs.database import Sessions, tenant_transaction
from jobs.errors import InvalidRequest, LimitReached
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.status import FINAL, JobStatus

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""From one look into the database to the next; every stream waits for the same ones."""
SOON_SECONDS = 0.05
"""The same while a stream catches up with what was there before it."""
FAILED_SECONDS = 2.0
"""The same while the database does not answer."""
_LIMITS = {"event": 200, "metric": 500, "log": 8}
"""Rows of one look, for each stream; log chunks have up to 64 KiB."""
_READERS: dict[str, Callable[[Any], Any]] = {"event": read_event, "metric": read_metric, "log": read_log_chunk}
_CURSOR = re.compile(r"(\d{1,18})-(\d{1,18})-(\d{1,18})", re.ASCII)

Kind = Literal["event", "metric", "log"]


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last of each kind that a client has; as text `EVENT-METRIC-LOG`: the cursors of the polled routes."""

    event: int = 0
    metric: int = 0
    log: int = 0

    def __str__(self) -> str:
        return f"{self.event}-{self.metric}-{self.log}"


def parse_cursor(text: str, param: str) -> Cursor:
    """Raises InvalidRequest."""
    if text in ("", "0"):
        return Cursor()
    if (match := _CURSOR.fullmatch(text)) is None:
        remedy = "send the `id` of the last message that you have, or nothing to begin with the first"
        raise InvalidRequest("invalid_cursor", f"{param} is no cursor of a stream", param=param, remedy=remedy)
    return Cursor(*map(int, match.groups()))


@dataclass(frozen=True, slots=True)
class News:
    """What one look found after a cursor."""

    messages: Sequence[ServerSentEvent]
    cursor: Cursor
    """After the messages."""
    has_more: bool
    status: JobStatus | None
    """The job's, from before the messages were read: a final one means that they are the last, unless there are more.
    None for a job that is gone."""

    @property
    def is_end(self) -> bool:
        return not self.has_more and (self.status is None or self.status in FINAL)


@dataclass(eq=False, slots=True)
class Tail:
    """One client's stream of one job."""

    identity: Identity
    job_id: str
    cursor: Cursor

    @property
    def place(self) -> tuple[str, Cursor]:
        return self.job_id, self.cursor


class Streams:
    """The streams of this process, and the one task that looks for all of them."""

    def __init__(self, sessions: Sessions, settings: Settings, is_stopping: Callable[[], bool]) -> None:
        """`is_stopping`: the server was told to end; it waits for its streams, which must not wait for their jobs."""
        self._sessions = sessions
        self._settings = settings
        self._is_stopping = is_stopping
        self._open: set[Tail] = set()
        self._waiting: dict[Tail, asyncio.Future[News | None]] = {}
        self._is_asked = asyncio.Event()

    def open(self, tail: Tail) -> None:
        """Take a place among those of the process and of the key. Raises LimitReached."""
        num_of_key = sum(other.identity.key_id == tail.identity.key_id for other in self._open)
        for number, limit, whose in (
            (num_of_key, self._settings.max_streams_per_key, "of this key"),
            (len(self._open), self._settings.max_streams, "of this server"),
        ):
            if number >= limit:
                remedy = "end some, or poll the job's events, metrics and logs"
                message = f"{limit} streams {whose} are open already, which is the limit"
                raise LimitReached("stream_limit_reached", message, remedy=remedy)
        self._open.add(tail)

    def close(self, tail: Tail) -> None:
        self._open.discard(tail)

    async def follow(self, tail: Tail) -> AsyncIterator[ServerSentEvent]:
        """Until the job is final. It ends sooner, without the message `end`, when its key is no longer valid or the
        server stops."""
        while (news := await self._wait(tail)) is not None:
            for message in news.messages:
                yield message
            tail.cursor = news.cursor
            if news.is_end:
                yield ServerSentEvent(event="end", data={"status": news.status}, id=str(news.cursor))
                return

    async def _wait(self, tail: Tail) -> News | None:
        self._waiting[tail] = asyncio.get_running_loop().create_future()
        self._is_asked.set()
        try:
            return await self._waiting[tail]
        finally:
            del self._waiting[tail]

    async def run(self) -> None:
        """Look for all that wait, again and again; nothing is looked for while none waits."""
        while True:
            await self._is_asked.wait()
            self._is_asked.clear()
            while waiting := dict(self._waiting):
                await asyncio.sleep(await self._answer(waiting))

    async def _answer(self, waiting: dict[Tail, asyncio.Future[News | None]]) -> float:
        """Returns the seconds to the next look."""
        found: dict[Tail, News | None] = {}
        if self._is_stopping():
            found = dict.fromkeys(waiting)
        else:
            try:
                found = await asyncio.to_thread(self._look, list(waiting))
            except Exception as error:  # The streams live on, and look again.
                logger.warning("the streams cannot be served: %s", error)
                return FAILED_SECONDS
        for tail, news in found.items():
            if not waiting[tail].done():  # Its client may have gone meanwhile.
                waiting[tail].set_result(news)
        is_behind = any(news is not None and news.has_more for news in found.values())
        return SOON_SECONDS if is_behind else LOOK_SECONDS

    def _look(self, tails: Sequence[Tail]) -> dict[Tail, News | None]:
        """For whom there is something new: what; None where the key is no longer valid."""
        by_tenant: dict[str, list[Tail]] = defaultdict(list)
        for tail in tails:
            by_tenant[tail.identity.tenant_id].append(tail)
        found: dict[Tail, News | None] = {}
        for tenant_id, own in by_tenant.items():
            with tenant_transaction(self._sessions, tenant_id) as session:
                valid_keys = repository.list_valid_keys(session, {tail.identity.key_id for tail in own})
                news = _find_news(session, {tail.place for tail in own if tail.identity.key_id in valid_keys})
            found.update((tail, news[tail.place] if tail.identity.key_id in valid_keys else None) for tail in own)
        return {tail: news for tail, news in found.items() if news is None or news.messages or news.is_end}


def _find_news(session: Session, places: Collection[tuple[str, Cursor]]) -> dict[tuple[str, Cursor], News]:
    """Those that follow the same job from the same cursor share what is found."""
    if not places:
        return {}
    ordered = list(places)
    statuses = repository.list_job_statuses(session, {job_id for job_id, _ in ordered})
    found = {
        "event": repository.list_new_events(session, [(job, at.event) for job, at in ordered], _LIMITS["event"]),
        "metric": repository.list_new_metrics(session, [(job, at.metric) for job, at in ordered], _LIMITS["metric"]),
        "log": repository.list_new_log_chunks(session, [(job, at.log) for job, at in ordered], _LIMITS["log"]),
    }
    return {
        place: _build_news(place[1], {kind: rows[number] for kind, rows in found.items()}, statuses.get(place[0]))
        for number, place in enumerate(ordered)
    }


def _build_news(cursor: Cursor, rows: dict[str, list[Row[Any]]], status: JobStatus | None) -> News:
    """In the order in which things happened, as far as the orders within the kinds allow."""
    messages = []
    read = [[(kind, _READERS[kind](row)) for row in rows_of_kind] for kind, rows_of_kind in rows.items()]
    for kind, content in heapq.merge(*read, key=lambda pair: pair[1].created_at):
        cursor = replace(cursor, **{kind: content.seq})
        messages.append(ServerSentEvent(event=kind, raw_data=content.model_dump_json(), id=str(cursor)))
    has_more = any(len(rows[kind]) >= limit for kind, limit in _LIMITS.items())
    return News(messages, cursor, has_more, status)
