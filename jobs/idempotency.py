"""Requests that create something and are sent twice: the second is answered as the first was.

The row of a key is inserted, which is the lock, in the transaction that creates what the request asks for: whoever
sends the same meanwhile waits for its end, and after a crash there are both, the thing and the answer, or neither.
"""

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import and_, delete, func, or_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.errors import KeyReused
from jobs.models import IdempotencyKey
from jobs.repository import Identity

KEPT = timedelta(hours=24)
"""For so long a key answers."""
RETRY_WINDOW = timedelta(minutes=5)
"""A request without a key that says it is a retry repeats the identical one of the same API key within this time."""


@dataclass(frozen=True)
class Sending:
    """How a request is told from others."""

    action: str
    """What is asked for, such as the route's address."""
    key: str | None = None
    """Of the client's choice."""
    retry_count: int | None = None
    """How often the client sent it before, as some clients say of their own accord; None: it does not say."""


@dataclass(frozen=True)
class Claim:
    """`answer` is the earlier one; None: this is the first such request, which must `keep` its own."""

    answer: str | None
    row: IdempotencyKey | None

    def keep(self, answer: str) -> None:
        if self.row is not None:
            self.row.answer = answer


def claim(session: Session, identity: Identity, sending: Sending, body: str) -> Claim:
    """Waits for an identical request that is being answered. Raises KeyReused."""
    request_hash = hashlib.sha256(f"{sending.action}\n{body}".encode()).hexdigest()
    if sending.key is not None:
        key = f"client:{sending.key}"
    elif sending.retry_count is not None:
        key = f"retry:{identity.key_id}:{request_hash}"
    else:
        return Claim(None, None)
    _insert(session, identity.tenant_id, key, request_hash, sending)
    row = session.get_one(IdempotencyKey, (identity.tenant_id, key), populate_existing=True)
    if row.request_hash != request_hash:
        raise KeyReused(
            "idempotency_key_reused",
            "this Idempotency-Key was used with another request; take a new key for a new one",
            param="Idempotency-Key",
        )
    return Claim(row.answer, row)


def _insert(session: Session, tenant_id: str, key: str, request_hash: str, sending: Sending) -> None:
    """Nothing happens where a row is that still answers; one that does not any more is made anew."""
    values = {
        "tenant_id": tenant_id,
        "key": key,
        "request_hash": request_hash,
        "retry_count": sending.retry_count or 0,
    }
    statement = insert(IdempotencyKey).values(values)
    old, new = IdempotencyKey, statement.excluded
    if sending.key is not None:
        is_over = old.created_at < func.now() - KEPT
    else:
        # Whoever sends the same for the first time wants two of them. But one that comes after its own retry is late.
        is_another = and_(new.retry_count == 0, old.retry_count == 0)
        is_over = or_(old.created_at < func.now() - RETRY_WINDOW, is_another)
    fresh = {"request_hash": new.request_hash, "retry_count": new.retry_count, "answer": None, "created_at": func.now()}
    session.execute(statement.on_conflict_do_update(index_elements=[old.tenant_id, old.key], set_=fresh, where=is_over))


def forget_old_keys(session: Session) -> None:
    """A while after their time, so that none goes that a request has just found."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < func.now() - KEPT - RETRY_WINDOW))
