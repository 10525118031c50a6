"""Joins the dashboard to the API: static files, security headers, and errors as pages."""

from typing import Literal
from urllib.parse import urlencode

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, RedirectResponse, Response
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dashboard import pages, sign_in
from api.dashboard.charts import PLOTLY_URL, find_plotly
from api.dashboard.rendering import HERE, render
from api.dashboard.swagger import SWAGGER_URL, find_swagger
from api.errors import STATUS_CODES
from jobs.errors import MedtuneError, NotAuthenticated

SECURITY_HEADERS = {
    # Plotly writes a style sheet into the page; scripts come from files of this service only. Swagger UI's style sheet
    # carries its pictures.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Other sites learn nothing. Not `no-referrer`: that would take the Origin from our own forms too, and over plain
    # http the Origin is all that tells them from other sites' forms.
    "Referrer-Policy": "same-origin",
}


def add_dashboard(app: FastAPI) -> None:
    """An application of its own, so that its errors are pages; it shares the API's state."""
    dashboard = FastAPI(openapi_url=None)
    dashboard.state = app.state
    dashboard.include_router(sign_in.router)
    dashboard.include_router(pages.router)
    dashboard.add_api_route(PLOTLY_URL.removeprefix("/dashboard"), _get_plotly)
    dashboard.add_api_route(f"{SWAGGER_URL.removeprefix('/dashboard')}/{{name}}", _get_swagger)
    dashboard.mount("/static", StaticFiles(directory=HERE / "static"))
    _add_error_pages(dashboard)
    for path in ("/", "/dashboard"):
        app.add_api_route(path, go_to_jobs, include_in_schema=False)
    app.add_api_route("/docs", go_to_docs, include_in_schema=False)
    app.mount("/dashboard", _SecurityHeaders(dashboard))


def go_to_jobs() -> RedirectResponse:
    return RedirectResponse("/dashboard/jobs", status_code=303)


def go_to_docs() -> RedirectResponse:
    return RedirectResponse("/dashboard/docs", status_code=303)


_KEPT = {"Cache-Control": "public, max-age=31536000, immutable"}
"""By browsers for good: the version is in the URL."""


def _get_plotly() -> FileResponse:
    return FileResponse(find_plotly(), headers=_KEPT)


def _get_swagger(name: Literal["swagger-ui-bundle.js", "swagger-ui.css"]) -> FileResponse:
    return FileResponse(find_swagger(name), headers=_KEPT)


class _SecurityHeaders:
    """ASGI middleware around the whole dashboard, its error pages included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _add_error_pages(dashboard: FastAPI) -> None:
    dashboard.add_exception_handler(NotAuthenticated, _handle_not_signed_in)
    dashboard.add_exception_handler(MedtuneError, _handle_domain_error)
    dashboard.add_exception_handler(HTTPException, _handle_http_exception)
    dashboard.add_exception_handler(RequestValidationError, _handle_validation_error)
    dashboard.add_exception_handler(DataError, _handle_data_error)
    for lost_database in (OperationalError, InterfaceError, PoolTimeout):
        dashboard.add_exception_handler(lost_database, _handle_lost_database)
    dashboard.add_exception_handler(Exception, _handle_unexpected)


def _handle_not_signed_in(request: Request, _error: Exception) -> Response:
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/dashboard/sign-in?{urlencode({'next': wanted})}", status_code=303)


def _handle_domain_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, MedtuneError)
    return _error_page(STATUS_CODES[type(error)][0], error.message)


def _handle_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "there is no such page" if error.status_code == 404 else str(error.detail)
    return _error_page(error.status_code, message)


def _handle_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _error_page(422, f"{first['loc'][-1]}: {first['msg']}")


def _handle_data_error(_request: Request, _error: Exception) -> Response:
    """Such as NUL in an id: PostgreSQL cannot even compare it."""
    return _error_page(422, "the address holds characters or numbers that cannot be")


def _handle_lost_database(_request: Request, _error: Exception) -> Response:
    return _error_page(503, "the database does not answer; try again in a moment")


def _handle_unexpected(_request: Request, _error: Exception) -> Response:
    return _error_page(500, "something failed that should not have; the service's log says what")


def _error_page(status_code: int, message: str) -> Response:
    return render("error.html", status_code=status_code, code=status_code, message=message)
