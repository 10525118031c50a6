"""Sign in with an API key, and out again. The session is a signed cookie that names the key."""

from typing import Annotated

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from api.dashboard.rendering import render
from api.dependencies import SESSION_COOKIE, Services, ServicesDep, authenticate_only, find_by_value, is_own_page
from jobs import audit_log
from jobs.api_keys import hash_key
from jobs.errors import NotAuthenticated
from jobs.repository import Identity

router = APIRouter()

_START_PAGE = "/dashboard/jobs"


@router.get("/sign-in")
def show_sign_in(request: Request, next: str = _START_PAGE) -> Response:
    if _is_signed_in(request):
        return RedirectResponse(_check_target(next), status_code=303)
    return render("sign_in.html", next=_check_target(next), error=None)


@router.post("/sign-in")
def sign_in(
    request: Request,
    services: ServicesDep,
    key: Annotated[str, Form(max_length=1000)] = "",
    next: Annotated[str, Form(max_length=2000)] = _START_PAGE,
) -> Response:
    _check_own_page(request)
    identity = _sign_in(request, services, key.strip())
    if identity is None:
        services.refused.count(request)
        message = "This is no valid API key." if key.strip() else "Enter an API key."
        return render("sign_in.html", status_code=401, next=_check_target(next), error=message)
    response = RedirectResponse(_check_target(next), status_code=303)
    response.set_cookie(
        SESSION_COOKIE,
        services.sign_session(identity.key_id),
        max_age=int(services.settings.session_hours * 3600),
        secure=_is_https(request),
        httponly=True,
        samesite="strict",
    )
    return response


@router.post("/sign-out")
def sign_out(request: Request) -> Response:
    _check_own_page(request)
    response = RedirectResponse("/dashboard/sign-in", status_code=303)
    response.delete_cookie(SESSION_COOKIE, secure=_is_https(request), httponly=True, samesite="strict")
    return response


@router.get("/session")
def show_session(request: Request) -> dict[str, bool]:
    """Whether the caller is signed in.

    Who follows a link from another site comes without the cookie, as SameSite=Strict wants it. The sign-in page asks
    here, as a page of our own, and goes on by itself.
    """
    return {"signed_in": _is_signed_in(request)}


def _is_signed_in(request: Request) -> bool:
    try:
        authenticate_only(request)
    except NotAuthenticated:
        return False
    return True


def _sign_in(request: Request, services: Services, key: str) -> Identity | None:
    with services.sessions.begin() as session:
        identity = find_by_value(request, services, session, hash_key(key, services.secret_key))
        if identity is not None:
            audit_log.record(session, tenant_id=identity.tenant_id, actor=identity.key_id, action="sign_in")
    return identity


def _check_own_page(request: Request) -> None:
    """Another site must not sign people in as somebody else, nor out."""
    if not is_own_page(request):
        raise HTTPException(403, "this form was not sent from a page of this service")


def _check_target(path: str) -> str:
    """A page of the dashboard, never another site."""
    is_ours = path.startswith("/dashboard/") and path.isprintable() and "\\" not in path
    return path if is_ours else _START_PAGE


def _is_https(request: Request) -> bool:
    """As the browser sees it: behind a proxy that ends TLS, the form's Origin tells."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
