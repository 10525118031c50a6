"""API keys: made once, shown once, stored as a keyed hash."""

import hashlib
import hmac
import secrets

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.ids import new_id
from jobs.models import ApiKey

DEFAULT_TENANT = "default"


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
    max_running: int | None = None,
    max_queued: int | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its value, which nobody can read again. Without limits: as many jobs as fit."""
    value = f"mt_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        id=new_id("key"),
        key_hash=hash_key(value, secret_key),
        name=name,
        tenant_id=tenant_id,
        is_admin=is_admin,
        max_running=max_running,
        max_queued=max_queued,
    )
    session.add(key)
    session.flush()
    return key, value


def ensure_bootstrap_key(session: Session, secret_key: bytes, value: str) -> None:
    """An admin key with this value exists. Two services that start at once may both call it."""
    key = insert(ApiKey).values(
        id=new_id("key"),
        key_hash=hash_key(value, secret_key),
        name="bootstrap",
        tenant_id=DEFAULT_TENANT,
        is_admin=True,
    )
    session.execute(key.on_conflict_do_nothing())


def revoke_key(session: Session, key_id: str) -> bool:
    """Whether there was such a valid key."""
    valid = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    return session.execute(valid.values(revoked_at=func.now()).returning(ApiKey.id)).first() is not None
