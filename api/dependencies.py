"""What routes ask for: the settings, the caller, and the caller's transaction."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from itsdangerous import BadSignature, TimestampSigner
from sqlalchemy.orm import Session

from jobs import repository
from jobs.api_keys import hash_key
from jobs.database import Sessions
from jobs.errors import NotAuthenticated
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.store import Store
from jobs.task_queue import Doorbell

SESSION_COOKIE = "medtune_session"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_BEARER = HTTPBearer(auto_error=False, description="An API key: `medtune keys create`")


@dataclass(frozen=True)
class Services:
    """What the process holds for all requests, at `app.state.services`."""

    settings: Settings
    sessions: Sessions
    store: Store
    doorbell: Doorbell
    secret_key: bytes

    def sign_session(self, key_id: str) -> str:
        return self._signer.sign(key_id).decode()

    def read_session(self, cookie: str) -> str:
        """The key id of a signed cookie. Raises itsdangerous.BadSignature, also when it is too old."""
        return self._signer.unsign(cookie, max_age=int(self.settings.session_hours * 3600)).decode()

    @property
    def _signer(self) -> TimestampSigner:
        return TimestampSigner(self.secret_key, salt="medtune.session")


def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and a transaction in which row-level security shows this tenant's rows only."""

    identity: Identity
    session: Session


def authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Iterator[Caller]:
    """One request, one transaction: it is committed before the answer leaves."""
    services = get_services(request)
    with services.sessions.begin() as session:
        yield Caller(identify(request, services, session, credentials), session)


def authenticate_only(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Identity:
    """For routes with long work: no transaction stays open meanwhile."""
    services = get_services(request)
    with services.sessions.begin() as session:
        return identify(request, services, session, credentials)


def identify(
    request: Request, services: Services, session: Session, credentials: HTTPAuthorizationCredentials | None
) -> Identity:
    """By API key, or by the dashboard's session cookie. Raises NotAuthenticated."""
    identity = None
    if credentials is not None:
        key_hash = hash_key(credentials.credentials, services.secret_key)
        identity = repository.identify(session, key_hash=key_hash)
    elif (cookie := request.cookies.get(SESSION_COOKIE)) and is_own_page(request):
        try:
            identity = repository.identify(session, key_id=services.read_session(cookie))
        except BadSignature:
            identity = None
    if identity is None:
        raise NotAuthenticated(
            "invalid_api_key", "no valid API key; send the header `Authorization: Bearer KEY`", param="Authorization"
        )
    return identity


def is_own_page(request: Request) -> bool:
    """A cookie alone may read; to change something the request must come from one of our own pages.

    Browsers send Sec-Fetch-Site over https and to localhost only; elsewhere the Origin has to be this host.
    """
    if request.method in _SAFE_METHODS:
        return True
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host")


ServicesDep = Annotated[Services, Depends(get_services)]
CallerDep = Annotated[Caller, Depends(authenticate, scope="function")]
IdentityDep = Annotated[Identity, Depends(authenticate_only)]
