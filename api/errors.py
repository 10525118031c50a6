"""The one table from errors to HTTP, and the one shape that every error has."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from api.dependencies import Transaction, check_key, get_services
from jobs.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    KeyReused,
    LimitReached,
    MedtuneError,
    NotAuthenticated,
    NotFound,
    TooLarge,
)
from jobs.store import StoreUnavailable

logger = logging.getLogger(__name__)

STATUS_CODES: dict[type[MedtuneError], tuple[int, str]] = {
    InvalidRequest: (422, "invalid_request_error"),
    NotAuthenticated: (401, "authentication_error"),
    Forbidden: (403, "permission_error"),
    NotFound: (404, "not_found_error"),
    Conflict: (409, "conflict_error"),
    KeyReused: (422, "invalid_request_error"),
    LimitReached: (429, "rate_limit_error"),
    TooLarge: (413, "invalid_request_error"),
}
"""HTTP status and `type` of each error class."""

_HEADERS: dict[int, dict[str, str]] = {
    401: {"WWW-Authenticate": "Bearer"},
    # Clients that retry 409 by themselves would only hear the same again.
    409: {"x-should-retry": "false"},
    429: {"Retry-After": "30"},
    503: {"Retry-After": "5"},
}


def is_openai(request: Request) -> bool:
    """Its clients know 400 for what cannot be carried out as it stands."""
    return request.url.path.startswith("/v1/")


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str
    details: dict[str, Any]


class ErrorResponse(BaseModel):
    error: ErrorBody


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(MedtuneError, _handle_domain_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(DataError, _handle_data_error)
    app.add_exception_handler(PydanticSerializationError, _handle_no_text)
    app.add_exception_handler(IntegrityError, _handle_integrity_error)
    for lost_database in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(lost_database, _handle_lost_database)
    app.add_exception_handler(StoreUnavailable, _handle_lost_store)
    app.add_exception_handler(Exception, _handle_unexpected)


def build_error_response(
    status: int, type_: str, code: str, message: str, *, param: str | None = None, details: dict[str, Any] | None = None
) -> JSONResponse:
    error = {"message": message, "type": type_, "param": param, "code": code, "details": details or {}}
    return JSONResponse({"error": error}, status_code=status, headers=_HEADERS.get(status))


def _handle_domain_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MedtuneError)
    if isinstance(error, NotAuthenticated):
        get_services(request).refused.count(request)
    status, type_ = STATUS_CODES[type(error)]
    status = 400 if isinstance(error, InvalidRequest) and is_openai(request) else status
    response = build_error_response(status, type_, error.code, error.message, param=error.param, details=error.details)
    if "retry_after_seconds" in error.details:
        response.headers["Retry-After"] = str(error.details["retry_after_seconds"])
    return response


def _handle_validation_error(request: Request, error: Exception) -> JSONResponse:
    """Every problem with its field; values are left out, because they may be private.

    Who may not ask is not told what is wrong with his question.
    """
    assert isinstance(error, RequestValidationError)
    problems = [{"param": _name_field(e["loc"]), "message": e["msg"], "code": e["type"]} for e in error.errors()]
    first = problems[0]
    code = "unknown_field" if first["code"] == "extra_forbidden" else "invalid_field"
    message = f"{first['param']}: {first['message']}"
    try:
        with Transaction(request):
            raise InvalidRequest(code, message, param=first["param"], problems=problems)
    except (NotAuthenticated, InvalidRequest) as refusal:
        return _handle_domain_error(request, refusal)


def _name_field(location: tuple[str | int, ...]) -> str:
    """("body", "training", "lora", "r") is `training.lora.r`."""
    parts = [str(part) for part in location[1:]] or [str(part) for part in location]
    return ".".join(parts)


_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 400: "bad_request", 413: "too_large"}


def _handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    """What there is not, is told to those with a key only: nobody else learns which routes there are."""
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405):
        try:
            check_key(request)
        except MedtuneError as refusal:
            return _handle_domain_error(request, refusal)
    code = _HTTP_CODES.get(error.status_code, f"http_{error.status_code}")
    response = build_error_response(error.status_code, "invalid_request_error", code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


def _handle_data_error(request: Request, _error: Exception) -> JSONResponse:
    """Such as NUL in an id: PostgreSQL cannot even compare it."""
    message = "the address holds characters or numbers that cannot be"
    status = 400 if is_openai(request) else 422
    return build_error_response(status, "invalid_request_error", "invalid_field", message)


def _handle_no_text(request: Request, error: Exception) -> JSONResponse:
    """JSON can hold half of a surrogate pair, and a plain text field takes it; it is no character."""
    if "surrogates not allowed" not in str(error):
        raise error
    message = "body: it holds half of a surrogate pair, such as \\ud800, which is no character"
    status = 400 if is_openai(request) else 422
    return build_error_response(status, "invalid_request_error", "invalid_field", message, param="body")


def _handle_integrity_error(_request: Request, _error: Exception) -> JSONResponse:
    """Such as a job for a dataset that is being deleted."""
    message = "something that this refers to was changed or deleted in the same moment; look again"
    return build_error_response(409, "conflict_error", "changed_meanwhile", message)


def _handle_lost_database(_request: Request, error: Exception) -> JSONResponse:
    logger.error("the database does not answer: %s", error)
    return build_error_response(503, "server_error", "database_unavailable", "the database does not answer; try again")


def _handle_lost_store(_request: Request, error: Exception) -> JSONResponse:
    logger.error("the store does not do what is asked: %s", error)
    return build_error_response(503, "server_error", "store_unavailable", "the store does not answer; try again")


def _handle_unexpected(_request: Request, _error: Exception) -> JSONResponse:
    """Starlette logs the traceback after this answer is sent; then the server closes the connection."""
    response = build_error_response(500, "server_error", "internal_error", "something failed that should not have")
    response.headers["Connection"] = "close"
    return response
