"""The record of who did what."""

import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from api.dependencies import TransactionDep
from api.pages import CursorPage, ReadModel
from jobs import audit_log

router = APIRouter(prefix="/audit", tags=["audit"])


class AuditRead(ReadModel):
    object: Literal["audit_entry"] = "audit_entry"
    seq: int
    at: datetime.datetime
    actor: str
    """The id of an API key, or `operator` for who works on the database by the command line."""
    action: str
    object_id: str | None
    result: str
    """`ok`, or the code of the refusal."""
    data: dict[str, Any]
    hash: str
    """SHA-256 over the hash before and this entry, in hexadecimal."""


@router.get("", summary="Who did what, the oldest first")
def list_audit(
    transaction: TransactionDep,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="The `cursor` of the page before.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> CursorPage[AuditRead]:
    with transaction as caller:
        entries = audit_log.list_entries(caller.session, after=after, limit=limit + 1)
    data = [
        AuditRead(
            seq=entry.seq,
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            object_id=entry.object_id,
            result=entry.result,
            data=entry.data,
            hash=entry.hash.hex(),
        )
        for entry in entries[:limit]
    ]
    return CursorPage(data=data, has_more=len(entries) > limit, cursor=data[-1].seq if data else after)
