"""The audit log: who did what to what, and how it went. Entries are added in the transaction of the act itself.

A trigger numbers and chains them per tenant, each hash over the one before and the entry; nobody has the right to
change or delete one. Who may do anything to the database can still rewrite a whole chain, or cut off its end: compare
with a hash that was noted elsewhere.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, column, func, insert, select, table, text, tuple_
from sqlalchemy.orm import Session

from jobs.models import AuditEntry, AuditHead, Json
from jobs.statements import Statement

OPERATOR = "operator"
"""The actor of the command line, which works on the database itself."""
OK = "ok"
READ_AGAIN = "1 hour"
"""Who reads the same again within so long adds no entry: pages are polled every second."""
_MAX_ID = 200
_BATCH = 1000

_columns = AuditEntry.__table__.c
_GIVEN = ("tenant_id", "actor", "action", "object_id", "result", "data")
"""The rest is the trigger's."""
ADD_ENTRY = Statement(
    insert(table("audit_entries", *(column(name, _columns[name].type) for name in _GIVEN))).values(
        {name: bindparam(name) for name in _GIVEN}
    )
)


def record(
    session: Session,
    *,
    tenant_id: str,
    actor: str,
    action: str,
    object_id: str | None = None,
    result: str = OK,
    **data: Any,
) -> None:
    """The last statement of its transaction: it holds the tenant's chain until the commit."""
    values = _build(tenant_id, actor, action, object_id, result, data)
    ADD_ENTRY.first(session, **values)


def record_read(session: Session, *, tenant_id: str, actor: str, action: str, object_id: str | None) -> None:
    """As `record`, unless the same was read within READ_AGAIN."""
    values = _build(tenant_id, actor, action, object_id, OK, {})
    earlier = select(_columns.seq).where(
        _columns.tenant_id == tenant_id,
        _columns.object_id == values["object_id"],
        _columns.action == action,
        _columns.actor == actor,
        _columns.at > func.now() - text(f"interval '{READ_AGAIN}'"),
    )
    if session.connection().execute(earlier.limit(1)).first() is None:
        ADD_ENTRY.first(session, **values)


def record_by_operator(session: Session, *, tenant_id: str, action: str, object_id: str, **data: Any) -> None:
    """Of the command line, whose transactions are no tenant's."""
    session.execute(select(func.set_config("medtune.tenant", tenant_id, True)))
    record(session, tenant_id=tenant_id, actor=OPERATOR, action=action, object_id=object_id, **data)


def _build(tenant_id: str, actor: str, action: str, object_id: str | None, result: str, data: Json) -> Json:
    """An id comes from an address and may be anything; Postgres stores no NUL."""
    if object_id is not None:
        object_id = object_id.replace("\0", "")[:_MAX_ID]
    return {
        "tenant_id": tenant_id,
        "actor": actor,
        "action": action,
        "object_id": object_id,
        "result": result,
        "data": data,
    }


def list_entries(session: Session, *, after: int, limit: int) -> Sequence[AuditEntry]:
    """Of the transaction's tenant, the oldest first."""
    query = select(AuditEntry).where(AuditEntry.seq > after).order_by(AuditEntry.tenant_id, AuditEntry.seq)
    return session.scalars(query.limit(limit)).all()


@dataclass(frozen=True)
class Chain:
    """One tenant's, as far as it holds."""

    tenant_id: str
    num_entries: int
    hash: str
    """Of its last entry, in hexadecimal: whoever notes it elsewhere can later tell that nothing before it changed."""
    problem: str | None
    """Where it breaks."""


def verify_chains(session: Session, known_hash: str | None = None) -> Iterator[Chain]:
    """Of every tenant. `known_hash`: that of an entry which must be there."""
    is_known = known_hash is None
    for head in session.scalars(select(AuditHead).order_by(AuditHead.tenant_id)).all():
        chain, found = _verify(session, head, known_hash)
        is_known = is_known or found
        yield chain
    orphans = select(_columns.tenant_id).distinct().where(_columns.tenant_id.not_in(select(AuditHead.tenant_id)))
    for tenant_id in session.scalars(orphans):
        yield Chain(tenant_id, 0, "", "its head is missing")
    if not is_known:
        yield Chain("", 0, "", f"no entry has the hash {known_hash}")


def _verify(session: Session, head: AuditHead, known_hash: str | None) -> tuple[Chain, bool]:
    previous, count, found = b"", 0, False
    for entry in iter_entries(session, tenant_id=head.tenant_id):
        problem = _find_problem(entry, count + 1, previous)
        if problem is not None:
            return Chain(head.tenant_id, count, previous.hex(), f"entry {count + 1}: {problem}"), found
        previous, count = entry.hash, count + 1
        found = found or entry.hash.hex() == known_hash
    is_whole = (head.seq, head.hash) == (count, previous)
    problem = None if is_whole else f"it ends with entry {count}, and its head says {head.seq}"
    return Chain(head.tenant_id, count, previous.hex(), problem), found


def iter_entries(
    session: Session, *, tenant_id: str | None = None, object_id: str | None = None
) -> Iterator[AuditEntry]:
    """By tenant, the oldest first."""
    query = select(AuditEntry).order_by(AuditEntry.tenant_id, AuditEntry.seq)
    if tenant_id is not None:
        query = query.where(AuditEntry.tenant_id == tenant_id)
    if object_id is not None:
        query = query.where(AuditEntry.object_id == object_id)
    last: tuple[str, int] = ("", 0)
    while entries := session.scalars(
        query.where(tuple_(AuditEntry.tenant_id, AuditEntry.seq) > last).limit(_BATCH)
    ).all():
        yield from entries
        last = entries[-1].tenant_id, entries[-1].seq
        session.expunge_all()  # However long the log is.


def _find_problem(entry: AuditEntry, seq: int, previous: bytes) -> str | None:
    if entry.seq != seq:
        return f"it is missing, the next one is {entry.seq}"
    if entry.previous_hash != previous:
        return "it does not follow the one before"
    if hashlib.sha256(previous + entry.record.encode()).digest() != entry.hash:
        return "its hash is not that of its record"
    try:
        told = json.loads(entry.record)
        told["at"] = told["at"].replace("Z", "+00:00")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "its record is not one that the service writes"
    names = ("tenant_id", "seq", "actor", "action", "object_id", "result", "data")
    columns = {name: getattr(entry, name) for name in names}
    columns["at"] = entry.at.isoformat(timespec="microseconds")
    return None if told == columns else "its columns are not what its record says"
