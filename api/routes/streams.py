"""A job's events, metrics and log as they come."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.dependencies import TransactionDep
from api.streams import Streams, Tail, parse_cursor
from jobs import repository

router = APIRouter(prefix="/jobs", tags=["jobs"])


def get_streams(request: Request) -> Streams:
    streams: Streams = request.app.state.streams
    return streams


def check_tail(
    job_id: str,
    transaction: TransactionDep,
    after: Annotated[str, Query(max_length=100, description="The `id` of the last message that you have.")] = "0",
    last_event_id: Annotated[
        str | None, Header(max_length=100, description="The same; it counts before `after`.")
    ] = None,
) -> Tail:
    """All that can be refused is refused here: in the stream itself it would come after the 200.

    Raises NotAuthenticated, NotFound, InvalidRequest.
    """
    with transaction as caller:
        repository.get_job(caller.session, job_id)
        cursor = parse_cursor(last_event_id, "Last-Event-ID") if last_event_id else parse_cursor(after, "after")
        return Tail(caller.identity, job_id, cursor)


async def open_tail(request: Request, tail: Annotated[Tail, Depends(check_tail)]) -> AsyncIterator[Tail]:
    """It keeps its place until the answer has ended, however it ends. Raises LimitReached."""
    streams = get_streams(request)
    streams.open(tail)
    try:
        yield tail
    finally:
        streams.close(tail)


@router.get("/{job_id}/stream", summary="Follow a job", response_class=EventSourceResponse)
async def stream_job(request: Request, tail: Annotated[Tail, Depends(open_tail)]) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `event`, `metric` and `log`, each with what the routes of these names give, as they come.

    `end`, with the job's status, is the last one. When a stream ends without it, go on with the `id` of the last
    message, as `Last-Event-ID` or `after`: nothing is missed, and nothing comes twice. 429 with too many streams.
    """
    async for message in get_streams(request).follow(tail):
        yield message
