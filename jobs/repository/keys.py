"""API keys, and whose a request is."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from jobs.models import ApiKey


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sends a request."""

    key_id: str
    tenant_id: str
    is_admin: bool
    max_queued: int | None = None
    """As many of the key's jobs may wait; None: any number."""


_keys = ApiKey.__table__.c
_IDENTIFY = select(
    _keys.id,
    _keys.tenant_id,
    _keys.is_admin,
    _keys.max_queued,
    # In the same statement, for a round trip less: the transaction sees the key's tenant from here on.
    func.set_config("medtune.tenant", _keys.tenant_id, True),
).where(_keys.revoked_at.is_(None))
_IDENTIFY_BY_HASH = _IDENTIFY.where(_keys.key_hash == bindparam("key_hash"))
_IDENTIFY_BY_ID = _IDENTIFY.where(_keys.id == bindparam("key_id"))


def identify(session: Session, *, key_hash: bytes | None = None, key_id: str | None = None) -> Identity | None:
    """The owner of a key that is valid now; the transaction becomes its tenant's."""
    connection = session.connection()
    if key_hash is not None:
        row = connection.execute(_IDENTIFY_BY_HASH, {"key_hash": key_hash}).first()
    else:
        row = connection.execute(_IDENTIFY_BY_ID, {"key_id": key_id}).first()
    return None if row is None else Identity(row[0], row[1], row[2], row[3])


def find_queue_limit(session: Session, key_id: str) -> int | None:
    return session.scalar(select(ApiKey.max_queued).where(ApiKey.id == key_id))


def list_keys(session: Session) -> Sequence[ApiKey]:
    return session.scalars(select(ApiKey).order_by(ApiKey.id)).all()
