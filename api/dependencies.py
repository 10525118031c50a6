"""What routes ask for: the settings, the caller, and the caller's transaction."""

import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated

from fastapi import Depends, Request
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


async def provide_services(request: Request) -> Services:
    """Not a plain function: the framework would send it to another thread."""
    return get_services(request)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and a transaction in which row-level security shows this tenant's rows only."""

    identity: Identity
    session: Session


class Transaction:
    """The request's one transaction: `with transaction as caller`. Raises NotAuthenticated when it is entered.

    It is a context and not a generator dependency: the work of a request stays in one thread of the pool, where each
    hop to another costs as much as a query. The commit is done when the block ends, before the answer leaves.
    """

    def __init__(self, request: Request) -> None:
        self._request = request

    def __enter__(self) -> Caller:
        services = get_services(self._request)
        self._context = services.sessions.begin()
        session = self._context.__enter__()
        try:
            return Caller(identify(self._request, services, session), session)
        except BaseException:
            self._context.__exit__(*sys.exc_info())
            raise

    def __exit__(
        self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context.__exit__(type_, value, traceback)


async def build_transaction(request: Request) -> Transaction:
    return Transaction(request)


def authenticate_only(request: Request) -> Identity:
    """For routes with long work: no transaction stays open meanwhile."""
    with Transaction(request) as caller:
        return caller.identity


def identify(request: Request, services: Services, session: Session) -> Identity:
    """By API key, or by the dashboard's session cookie. Raises NotAuthenticated."""
    identity = None
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        identity = repository.identify(session, key_hash=hash_key(key, services.secret_key))
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
    host = request.headers.get("host")
    return bool(host) and request.headers.get("origin", "").partition("://")[2] == host


ServicesDep = Annotated[Services, Depends(provide_services)]
TransactionDep = Annotated[Transaction, Depends(build_transaction)]
IdentityDep = Annotated[Identity, Depends(authenticate_only)]
