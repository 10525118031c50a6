"""A tenant's API keys."""

import datetime
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, field_validator

from api.dependencies import Caller, ServicesDep, TransactionDep
from api.idempotency import SendingDep, claim
from api.pages import Page, ReadModel
from jobs import api_keys, repository
from jobs.errors import Conflict, InvalidRequest
from jobs.models import ApiKey
from jobs.scopes import DEFAULT_SCOPES, Scope

router = APIRouter(prefix="/keys", tags=["keys"])

MAX_OVERLAP_SECONDS = 30 * 86400
_Limit = Annotated[int, Field(ge=0, lt=2**31)] | None


class KeyCreate(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """A name for people: who, or what, uses it."""
    scopes: list[Scope] = sorted(DEFAULT_SCOPES)
    """What it may do; by default all work within the tenant."""
    expires_at: datetime.datetime | None = None
    """From then on it opens nothing; with a time zone. Null: never, or when the key that makes it does."""
    max_running: _Limit = None
    """As many of its jobs run at once. Null: as many as of the key that makes it, and so the other limits."""
    max_queued: _Limit = None
    """As many of its jobs may wait."""
    max_storage_bytes: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """So much its datasets may take."""

    @field_validator("name")
    @classmethod
    def _refuse_nul(cls, name: str) -> str:
        if "\0" in name:
            raise ValueError("the character NUL (U+0000) is not allowed")
        return name

    @field_validator("expires_at")
    @classmethod
    def _check_end(cls, end: datetime.datetime | None) -> datetime.datetime | None:
        if end is not None and end.tzinfo is None:
            raise ValueError("say in which time zone, such as 2030-01-31T00:00:00Z")
        return end


class KeyRotate(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    overlap_seconds: Annotated[int, Field(ge=0, le=MAX_OVERLAP_SECONDS)] = 86400
    """The old value opens for so long, too: for changing it everywhere. 0 when somebody else has it."""


class KeyRead(ReadModel):
    object: Literal["key"] = "key"
    id: str
    name: str
    scopes: list[Scope]
    max_running: int | None
    max_queued: int | None
    max_storage_bytes: int | None
    created_at: datetime.datetime
    expires_at: datetime.datetime | None
    last_used_at: datetime.datetime | None
    """To the minute; null: never."""
    previous_valid_until: datetime.datetime | None
    """Of the last rotation: until then the value before opens, too."""
    revoked_at: datetime.datetime | None


class KeyCreated(KeyRead):
    value: str
    """The key itself. It is shown this once, and stored nowhere."""


@router.post("", status_code=201, summary="Make a key")
def create_key(body: KeyCreate, transaction: TransactionDep, services: ServicesDep, sending: SendingDep) -> KeyCreated:
    """In the own tenant. 403 for a scope or a limit that goes beyond the key that asks."""
    with transaction as caller:
        # Only the key that asked gets the value once more.
        first = claim(caller, sending, f"{caller.identity.key_id} {body.model_dump_json()}")
        if first.answer is not None:
            made = KeyRead.model_validate_json(first.answer)
            return KeyCreated(**made.model_dump(), value=api_keys.derive_value(services.secret_key, made.id))
        holder = _get_holder(caller)
        end = body.expires_at or holder.expires_at
        if end is not None and end <= datetime.datetime.now(datetime.UTC):
            raise InvalidRequest("invalid_field", "expires_at: it is over already", param="expires_at")
        names = ("max_running", "max_queued", "max_storage_bytes")
        limits = {name: getattr(holder, name) if getattr(body, name) is None else getattr(body, name) for name in names}
        key, value = api_keys.create_key(
            caller.session,
            services.secret_key,
            name=body.name,
            tenant_id=caller.identity.tenant_id,
            scopes=set(body.scopes),
            expires_at=end,
            **limits,
        )
        api_keys.check_power(holder, key)
        caller.object_id = key.id
        if first.row is not None:
            value = api_keys.set_derived_value(caller.session, services.secret_key, key)
        first.keep(_read(key).model_dump_json())
        return _show(key, value)


@router.get("", summary="List keys, the oldest first")
def list_keys(transaction: TransactionDep) -> Page[KeyRead]:
    """Those of the own tenant, also revoked ones. Their values are not stored."""
    with transaction as caller:
        keys = repository.list_keys(caller.session, caller.identity.tenant_id)
        return Page(data=[_read(key) for key in keys], has_more=False)


@router.post("/{key_id}/rotate", summary="Give a key a new value")
def rotate_key(key_id: str, body: KeyRotate, transaction: TransactionDep, services: ServicesDep) -> KeyCreated:
    """Its id, scopes, limits and jobs stay. The old value opens until the overlap is over; one that was rotated away
    earlier ends at once. 403 for a key that may more than the one that asks; 409 when it is not valid any more."""
    with transaction as caller:
        key = repository.lock_key(caller.session, key_id, caller.identity.tenant_id)
        api_keys.check_power(_get_holder(caller), key)
        overlap = datetime.timedelta(seconds=body.overlap_seconds)
        value = api_keys.rotate_key(caller.session, services.secret_key, key, overlap)
        return _show(key, value)


@router.delete("/{key_id}", summary="Revoke a key, at once")
def revoke_key(key_id: str, transaction: TransactionDep) -> KeyRead:
    """With it, both of its values and the sessions that it opened. Its jobs go on. 409 when it was revoked before."""
    with transaction as caller:
        key = repository.lock_key(caller.session, key_id, caller.identity.tenant_id)
        api_keys.check_scopes_held(_get_holder(caller), key)
        if api_keys.revoke_key(caller.session, key.id) is None:
            raise Conflict("key_revoked", f"key {key.id} was revoked before")
        caller.session.refresh(key)
        return _read(key)


def _get_holder(caller: Caller) -> ApiKey:
    return caller.session.get_one(ApiKey, caller.identity.key_id)


def _show(key: ApiKey, value: str) -> KeyCreated:
    return KeyCreated(**_read(key).model_dump(), value=value)


def _read(key: ApiKey) -> KeyRead:
    names = [name for name in KeyRead.model_fields if name not in ("object", "scopes")]
    return KeyRead(**{name: getattr(key, name) for name in names}, scopes=api_keys.list_scopes(key))
