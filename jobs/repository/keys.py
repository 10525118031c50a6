"""API keys, and whose a request is."""

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import DateTime, Row, and_, bindparam, func, or_, select
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.models import ApiKey
from jobs.scopes import DEFAULT_SCOPES, Scope
from jobs.statements import Statement


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sends a request."""

    key_id: str
    tenant_id: str
    is_admin: bool
    max_queued: int | None = None
    """As many of the key's jobs may wait; None: any number."""
    scopes: frozenset[str] = DEFAULT_SCOPES
    max_storage_bytes: int | None = None
    """So much the key's datasets may take; None: any number."""

    def may(self, scope: Scope) -> bool:
        return self.is_admin or scope in self.scopes


_keys = ApiKey.__table__.c
IS_VALID = and_(_keys.revoked_at.is_(None), or_(_keys.expires_at.is_(None), _keys.expires_at > func.now()))
_IDENTIFY = select(
    _keys.id,
    _keys.tenant_id,
    _keys.is_admin,
    _keys.max_queued,
    _keys.scopes,
    _keys.max_storage_bytes,
    # In the same statement, for a round trip less: the transaction sees the key's tenant from here on.
    func.set_config("medtune.tenant", _keys.tenant_id, True),
).where(IS_VALID)
IDENTIFY_BY_HASH = Statement(_IDENTIFY.where(_keys.key_hash == bindparam("key_hash")))
_IDENTIFY_BY_PREVIOUS_HASH = Statement(
    _IDENTIFY.where(_keys.previous_key_hash == bindparam("key_hash"), _keys.previous_valid_until > func.now())
)
# A session that began before a rotation ends with the value that may have opened it.
_IDENTIFY_BY_ID = Statement(
    _IDENTIFY.where(
        _keys.id == bindparam("key_id"),
        or_(
            _keys.previous_valid_until.is_(None),
            _keys.previous_valid_until > func.now(),
            _keys.previous_valid_until <= bindparam("since", type_=DateTime(timezone=True)),
        ),
    )
)


def identify(session: Session, key_hash: bytes) -> Identity | None:
    """The owner of a key that is valid now; the transaction becomes its tenant's."""
    # During a rotation the old value takes a second statement, so that all others take one.
    for query in (IDENTIFY_BY_HASH, _IDENTIFY_BY_PREVIOUS_HASH):
        row = query.first(session, key_hash=key_hash)
        if row is not None:
            return _build_identity(row)
    return None


def identify_session(session: Session, key_id: str, since: datetime.datetime) -> Identity | None:
    """The same for a sign-in with that key at a time."""
    row = _IDENTIFY_BY_ID.first(session, key_id=key_id, since=since)
    return None if row is None else _build_identity(row)


def _build_identity(row: Row[Any]) -> Identity:
    return Identity(row.id, row.tenant_id, row.is_admin, row.max_queued, frozenset(row.scopes), row.max_storage_bytes)


def find_invalid_key(session: Session, key_hash: bytes) -> ApiKey | None:
    """The key that a value belonged to: it was revoked, its time is over, or another value took this one's place."""
    mine = or_(ApiKey.key_hash == key_hash, ApiKey.previous_key_hash == key_hash)
    return session.scalar(select(ApiKey).where(mine))


def find_queue_limit(session: Session, key_id: str) -> int | None:
    return session.scalar(select(ApiKey.max_queued).where(ApiKey.id == key_id))


def find_storage_limit(session: Session, key_id: str) -> int | None:
    return session.scalar(select(ApiKey.max_storage_bytes).where(ApiKey.id == key_id))


def list_valid_keys(session: Session, key_ids: Collection[str]) -> set[str]:
    """Those of the keys that are valid now."""
    return set(session.connection().scalars(select(_keys.id).where(_keys.id.in_(key_ids), IS_VALID)))


def list_keys(session: Session, tenant_id: str | None = None) -> Sequence[ApiKey]:
    """The oldest first; of all tenants without one."""
    query = select(ApiKey).order_by(ApiKey.id)
    if tenant_id is not None:
        query = query.where(ApiKey.tenant_id == tenant_id)
    return session.scalars(query).all()


def lock_key(session: Session, key_id: str, tenant_id: str | None = None) -> ApiKey:
    """For a change, until the transaction's end. Raises NotFound, also for another tenant's."""
    query = select(ApiKey).where(ApiKey.id == key_id).with_for_update(key_share=True)
    if tenant_id is not None:
        query = query.where(ApiKey.tenant_id == tenant_id)
    key = session.scalar(query)
    if key is None:
        raise NotFound("key_not_found", f"there is no key {key_id!r}")
    return key
