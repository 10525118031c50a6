"""What routes ask for: the settings, the caller, and the caller's transaction."""

import datetime
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated

from fastapi import Depends, Request
from itsdangerous import BadSignature, TimestampSigner
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from api.key_uses import KeyUses
from api.rate_limits import RateLimits
from api.refused_requests import RefusedRequests
from api.scopes import check_scope
from jobs import audit_log, repository
from jobs.api_keys import hash_key
from jobs.database import Sessions, tenant_transaction
from jobs.errors import Forbidden, MedtuneError, NotAuthenticated
from jobs.models import ApiKey, Json
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.store import Store
from jobs.task_queue import Doorbell

SESSION_COOKIE = "medtune_session"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Services:
    """What the process holds for all requests, at `app.state.services`."""

    settings: Settings
    sessions: Sessions
    store: Store
    doorbell: Doorbell
    secret_key: bytes
    rate_limits: RateLimits
    key_uses: KeyUses = field(default_factory=KeyUses)
    refused: RefusedRequests = field(default_factory=RefusedRequests)

    def sign_session(self, key_id: str) -> str:
        return self._signer.sign(key_id).decode()

    def read_session(self, cookie: str) -> tuple[str, datetime.datetime]:
        """Key id and time of a signed cookie. Raises itsdangerous.BadSignature, also when it is too old."""
        max_age = int(self.settings.session_hours * 3600)
        key_id, since = self._signer.unsign(cookie, max_age=max_age, return_timestamp=True)
        return key_id.decode(), since

    @property
    def _signer(self) -> TimestampSigner:
        return TimestampSigner(self.secret_key, salt="medtune.session")


def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def provide_services(request: Request) -> Services:
    """Not a plain function: the framework would send it to another thread."""
    return get_services(request)


@dataclass(slots=True)
class Caller:
    """Who asks, and a transaction in which row-level security shows this tenant's rows only."""

    identity: Identity
    session: Session
    object_id: str | None = None
    """What the request is about, for the audit log: a route that creates something says so."""
    told: Json = field(default_factory=dict)
    """What else its entry is to tell: ids and hashes."""


AUDITED_READS = frozenset(
    {
        "list_logs",
        "list_safety",
        "list_reviews",
        "get_review",
        "get_report",
        "get_rows",
        "download_adapter",
        "show_job",
        "show_dataset",
        "find_row",
        "download_file",
        "stream_job",
    }
)
"""Routes that show data, logs, findings or adapters. Of the others, whatever is not safe is recorded."""


class Transaction:
    """The request's one transaction: `with transaction as caller`. It raises NotAuthenticated and Forbidden when it is
    entered.

    It is a context and not a generator dependency: the work of a request stays in one thread of the pool, where each
    hop to another costs as much as a query. The commit is done when the block ends, before the answer leaves. The audit
    log's entry is the last of its statements; that of a refusal stands alone, after the rollback.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        path: dict[str, str] = request.path_params
        self._named_id = next(iter(path.values()), None)
        self._action: str = request.scope["route"].name
        self._is_counted = False

    def __enter__(self) -> Caller:
        services = get_services(self._request)
        self._context = services.sessions.begin()
        session = self._context.__enter__()
        try:
            self._caller = Caller(identify(self._request, services, session), session, self._named_id)
            check_scope(self._caller.identity, self._action)
            self._count(services)
        except BaseException as error:
            self._context.__exit__(*sys.exc_info())
            if isinstance(error, Forbidden):
                record_refusal(self._request, self._caller.identity, error.code, self._named_id)
            raise
        return self._caller

    def __exit__(
        self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if value is None:
            try:
                self._record_done()
            except BaseException:
                self._context.__exit__(*sys.exc_info())
                raise
        self._context.__exit__(type_, value, traceback)
        if value is None:
            services = get_services(self._request)
            services.key_uses.note(services.sessions, self._caller.identity.key_id)
        if isinstance(value, MedtuneError):
            record_refusal(self._request, self._caller.identity, value.code, self._caller.object_id)

    def _count(self, services: Services) -> None:
        """Once for a request, however many transactions it takes. Admins' keys are the operator's own."""
        identity = self._caller.identity
        if not self._is_counted and not identity.is_admin:
            is_read = self._request.method in _SAFE_METHODS
            services.rate_limits.check_request(identity.key_id, is_read=is_read)
        self._is_counted = True

    def _record_done(self) -> None:
        caller = self._caller
        who = {"tenant_id": caller.identity.tenant_id, "actor": caller.identity.key_id, "action": self._action}
        if self._action in AUDITED_READS:
            audit_log.record_read(caller.session, **who, object_id=caller.object_id)
        elif self._request.method not in _SAFE_METHODS and caller.object_id is not None:  # Else nothing was done.
            audit_log.record(caller.session, **who, object_id=caller.object_id, **caller.told)


async def build_transaction(request: Request) -> Transaction:
    return Transaction(request)


def authenticate_only(request: Request) -> Identity:
    """For routes with long work: no transaction stays open meanwhile."""
    with Transaction(request) as caller:
        caller.object_id = None  # Nothing is done yet.
        return caller.identity


def provide_identity(request: Request) -> Iterator[Identity]:
    """As `authenticate_only`; a refusal of what the route then does is recorded as one within a transaction is."""
    identity = authenticate_only(request)
    try:
        yield identity
    except MedtuneError as error:
        record_refusal(request, identity, error.code)
        raise
    except HTTPException as error:  # Such as a body that is too large, or no form at all.
        record_refusal(request, identity, f"http_{error.status_code}")
        raise


def record_refusal(request: Request, identity: Identity, code: str, object_id: str | None = None) -> None:
    """In a transaction of its own, after the rollback of whatever was begun."""
    action: str = request.scope["route"].name
    if request.method in _SAFE_METHODS and action not in AUDITED_READS:
        return
    who = {"tenant_id": identity.tenant_id, "actor": identity.key_id}
    with tenant_transaction(get_services(request).sessions, identity.tenant_id) as session:
        audit_log.record(session, **who, action=action, object_id=object_id, result=code)


def check_key(request: Request) -> None:
    """Whether the caller has a valid key. Raises NotAuthenticated."""
    services = get_services(request)
    with services.sessions.begin() as session:
        identify(request, services, session)


def identify(request: Request, services: Services, session: Session) -> Identity:
    """By API key, or by the dashboard's session cookie. Raises NotAuthenticated."""
    identity, code, message = None, "invalid_api_key", "no valid API key; send the header `Authorization: Bearer KEY`"
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        key_hash = hash_key(key, services.secret_key)
        identity = find_by_value(request, services, session, key_hash)
        if identity is None and (found := repository.find_invalid_key(session, key_hash)) is not None:
            code, message = describe_invalid_key(found, key_hash)
    elif (cookie := request.cookies.get(SESSION_COOKIE)) and is_own_page(request):
        try:
            identity = repository.identify_session(session, *services.read_session(cookie))
        except BadSignature:
            identity = None
    if identity is None:
        raise NotAuthenticated(code, message, param="Authorization")
    return identity


def find_by_value(request: Request, services: Services, session: Session, key_hash: bytes) -> Identity | None:
    """Whose a key is. Raises LimitReached for an address that was wrong too often."""
    address = request.client.host if request.client else ""
    services.rate_limits.check_address(address, key_hash)
    identity = repository.identify(session, key_hash)
    if identity is None:
        services.rate_limits.note_failure(address)
    else:
        services.rate_limits.note_success(key_hash)
    return identity


def describe_invalid_key(key: ApiKey, key_hash: bytes) -> tuple[str, str]:
    """Code and message. Only who has the whole value, and so could use it once, learns what became of it."""
    if key.revoked_at is not None:
        return "api_key_revoked", "this API key was revoked; ask for another"
    if key.previous_key_hash == key_hash:
        return "api_key_rotated", "this API key has a new value; the old one is no longer valid"
    return "api_key_expired", "this API key's time is over; ask for another"


def is_own_page(request: Request) -> bool:
    """A cookie alone may read; to change something the request must come from one of our own pages.

    Browsers send Sec-Fetch-Site over https and to localhost only; elsewhere the Origin has to be this host.
    """
    if request.method in _SAFE_METHODS:
        return True
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    host = request.headers.get("host")
    return bool(host) and request.headers.get("origin", "").partition("://")[2] == host


ServicesDep = Annotated[Services, Depends(provide_services)]
TransactionDep = Annotated[Transaction, Depends(build_transaction)]
IdentityDep = Annotated[Identity, Depends(provide_identity)]
