"""API keys: made once, shown once, stored as a keyed hash."""

import base64
import datetime
import hashlib
import hmac
import secrets
from collections.abc import Collection

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.errors import Conflict, Forbidden
from jobs.ids import new_id
from jobs.models import ApiKey
from jobs.scopes import DEFAULT_SCOPES, Scope

DEFAULT_TENANT = "default"
USE_SECONDS = 60
"""A key's last use is written once in so long."""


def hash_key(key: str, secret_key: bytes) -> bytes:
    """Keys carry 256 random bits, so a fast keyed hash is the right one: nothing to guess, nothing to replay."""
    return hmac.digest(secret_key, key.encode(), hashlib.sha256)


def create_key(
    session: Session,
    secret_key: bytes,
    *,
    name: str,
    tenant_id: str = DEFAULT_TENANT,
    is_admin: bool = False,
    scopes: Collection[Scope] = DEFAULT_SCOPES,
    expires_at: datetime.datetime | None = None,
    **limits: int | None,
) -> tuple[ApiKey, str]:
    """A new key and its value, which nobody can read again.

    Limits are `max_running`, `max_queued` and `max_storage_bytes`; without them: as much as fits.
    """
    value = _new_value()
    key = ApiKey(
        id=new_id("key"),
        key_hash=hash_key(value, secret_key),
        name=name,
        tenant_id=tenant_id,
        is_admin=is_admin or Scope.ADMIN in scopes,
        scopes=sorted(scopes),
        expires_at=expires_at,
        **limits,
    )
    session.add(key)
    session.flush()
    session.refresh(key)
    return key, value


def set_derived_value(session: Session, secret_key: bytes, key: ApiKey) -> str:
    """In the place of a new key's random one, when its creation may be answered twice: so it need not be stored."""
    value = derive_value(secret_key, key.id)
    key.key_hash = hash_key(value, secret_key)
    session.flush()
    return value


def derive_value(secret_key: bytes, key_id: str) -> str:
    """As `set_derived_value` gave it.

    No API key has a zero byte, so that this is the hash of none.
    """
    digest = hmac.digest(secret_key, f"\0api_key\0{key_id}".encode(), hashlib.sha256)
    return _write_value(digest)


def ensure_bootstrap_key(session: Session, secret_key: bytes, value: str) -> None:
    """An admin key with this value exists. Two services that start at once may both call it."""
    key = insert(ApiKey).values(
        id=new_id("key"),
        key_hash=hash_key(value, secret_key),
        name="bootstrap",
        tenant_id=DEFAULT_TENANT,
        is_admin=True,
        scopes=[Scope.ADMIN],
    )
    session.execute(key.on_conflict_do_nothing())


def list_scopes(key: ApiKey) -> list[Scope]:
    return sorted(Scope) if key.is_admin else sorted(Scope(name) for name in key.scopes)


def check_power(holder: ApiKey, key: ApiKey) -> None:
    """Nobody makes, or gets into his hands, a key that may more than his own. Raises Forbidden."""
    check_scopes_held(holder, key)
    for name in ("max_running", "max_queued", "max_storage_bytes", "expires_at"):
        mine, its = getattr(holder, name), getattr(key, name)
        if mine is not None and (its is None or its > mine):
            raise Forbidden("limit_exceeded", f"{name}: no more than this key's own, {mine}", param=name)


def check_scopes_held(holder: ApiKey, key: ApiKey) -> None:
    """Raises Forbidden."""
    excess = sorted(set(list_scopes(key)) - set(list_scopes(holder)))
    if excess:
        message = f"this key has not the scopes {', '.join(excess)}, and so cannot give them"
        raise Forbidden("scope_not_held", message, param="scopes", scopes=excess)


def rotate_key(session: Session, secret_key: bytes, key: ApiKey, overlap: datetime.timedelta) -> str:
    """A new value for a locked key, shown once; the old one opens for as long as `overlap`. Raises Conflict."""
    _check_valid(session, key)
    value = _new_value()
    key.previous_key_hash = key.key_hash
    key.previous_valid_until = func.now() + overlap
    key.key_hash = hash_key(value, secret_key)
    session.flush()
    session.refresh(key)
    return value


def revoke_key(session: Session, key_id: str) -> str | None:
    """It opens nothing from the commit on. The key's tenant; None when there is no such valid key."""
    valid = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    return session.scalar(valid.values(revoked_at=func.now()).returning(ApiKey.tenant_id))


def record_use(session: Session, key_id: str) -> None:
    """That the key is in use; nobody waits for anybody who writes the same."""
    is_old = or_(
        ApiKey.last_used_at.is_(None),
        ApiKey.last_used_at < func.now() - datetime.timedelta(seconds=USE_SECONDS),
    )
    mine = select(ApiKey.id).where(ApiKey.id == key_id, is_old).with_for_update(skip_locked=True, key_share=True)
    session.execute(update(ApiKey).where(ApiKey.id.in_(mine)).values(last_used_at=func.now()))


def _check_valid(session: Session, key: ApiKey) -> None:
    now = session.scalar(select(func.now()))
    assert now is not None
    if key.revoked_at is not None:
        raise Conflict("key_revoked", f"key {key.id} was revoked; make a new one")
    if key.expires_at is not None and key.expires_at <= now:
        raise Conflict("key_expired", f"the time of key {key.id} is over; make a new one")


def _new_value() -> str:
    return _write_value(secrets.token_bytes(32))


def _write_value(key_bytes: bytes) -> str:
    return f"mt_{base64.urlsafe_b64encode(key_bytes).rstrip(b'=').decode()}"
