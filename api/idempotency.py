"""What a request says about being sent twice: `Idempotency-Key`, and what some clients add to their own retries."""

from typing import Annotated

from fastapi import Depends, Header, Request

from api.dependencies import Caller
from jobs import idempotency
from jobs.idempotency import Claim, Sending

RETRY_HEADER = "x-stainless-retry-count"
"""Sent by the official `openai` clients, which send no key: 0 first, then 1, 2 when they try again by themselves."""


async def read_sending(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="The same key with the same request within 24 hours gets the same answer, and makes nothing.",
        ),
    ] = None,
) -> Sending:
    retries = request.headers.get(RETRY_HEADER, "")
    return Sending(
        action=f"{request.method} {request.url.path}",
        key=idempotency_key,
        retry_count=int(retries) if retries.isascii() and retries.isdigit() and len(retries) < 4 else None,
    )


def claim(caller: Caller, sending: Sending, body: str) -> Claim:
    """As `jobs.idempotency.claim`. Of an answer that is only repeated, the audit log has the first."""
    claimed = idempotency.claim(caller.session, caller.identity, sending, body)
    if claimed.answer is not None:
        caller.object_id = None
    return claimed


SendingDep = Annotated[Sending, Depends(read_sending)]
