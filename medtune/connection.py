"""Requests to the service and its answers as JSON; whatever goes wrong is an ApiError."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

Json = dict[str, Any]
T = TypeVar("T")

_TEMPORARY = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 5.0


class ApiError(Exception):
    """The service refused, or there was no answer: then `status` is None."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        param: str | None = None,
        details: Json | None = None,
        request_id: str | None = None,
    ) -> None:
        self.message = message
        self.code = code
        """A stable word for the kind of error."""
        self.status = status
        """HTTP status."""
        self.param = param
        """The field of the request that it is about."""
        self.details = details or {}
        self.request_id = request_id
        """The answer's `X-Request-Id`, where a proxy or the service gave one."""
        super().__init__(f"{message} ({code})" + (f"; {self.remedy}" if self.remedy else ""))

    @property
    def remedy(self) -> str | None:
        """What to do about it, where the service knows that."""
        return self.details.get("remedy")

    @property
    def is_temporary(self) -> bool:
        """The same request may be answered later, when connection, server or database are back."""
        return self.code == "no_answer" or self.status in _TEMPORARY

    @classmethod
    def from_response(cls, response: httpx.Response) -> Self:
        request_id = response.headers.get("x-request-id")
        try:
            error = response.json()["error"]
            message, code, details = str(error["message"]), str(error["code"]), error.get("details")
        except (ValueError, KeyError, TypeError):  # Not ours: a proxy's, or of another server.
            message = f"{response.request.url} answers with {response.status_code}: {response.text[:200].strip()}"
            return cls(message, code=f"http_{response.status_code}", status=response.status_code, request_id=request_id)
        return cls(
            message,
            code=code,
            status=response.status_code,
            param=error.get("param"),
            details=details if isinstance(details, dict) else None,
            request_id=request_id,
        )


class Connection:
    """Any route, with plain JSON. Every method raises ApiError."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.has_answered = False
        is_local = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
        headers = {"Authorization": f"Bearer {key}"}
        # A proxy is for what is elsewhere.
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=not is_local)

    def get(self, path: str, **params: Any) -> Json:
        return self._request("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None, **params: Any
    ) -> Json:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return self._request("POST", path, json=body, params=params, headers=headers)

    def delete(self, path: str) -> Json:
        return self._request("DELETE", path)

    def upload_file(self, path: Path, fields: Mapping[str, str | None], *, idempotency_key: str | None = None) -> Json:
        data = {name: value for name, value in fields.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        with path.open("rb") as file:
            parts = {"file": (path.name, file)}
            return self._request("POST", "/datasets", files=parts, data=data, headers=headers, timeout=None)

    def download_file(self, path: str, out: Path) -> None:
        """Whole or not at all; compared with the SHA-256 that the service names."""
        partial = out.with_name(f"{out.name}.partial")
        digest = hashlib.sha256()
        try:
            with self._clear_errors(), self.http.stream("GET", path) as response:
                if response.is_error:
                    response.read()
                    raise ApiError.from_response(response)
                with partial.open("wb") as file:
                    for chunk in response.iter_bytes():
                        digest.update(chunk)
                        file.write(chunk)
            if response.headers.get("etag") != f'"{digest.hexdigest()}"':
                raise ApiError(f"{path} did not come as it was sent; load it again", code="download_damaged")
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, method: str, path: str, **options: Any) -> Json:
        with self._clear_errors():
            response = self.http.request(method, path, **options)
        self.has_answered = True
        if response.is_error:
            raise ApiError.from_response(response)
        if response.status_code == httpx.codes.NO_CONTENT:
            return {}
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            message = f"{response.request.url} answers with no JSON object; is a medtune service at {self.url}?"
            raise ApiError(message, code="unexpected_answer", status=response.status_code)
        return content

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            message = f"{self.url} does not answer: {str(error) or type(error).__name__}"
            raise ApiError(message, code="no_answer") from error
        except (httpx.InvalidURL, httpx.DecodingError, httpx.TooManyRedirects) as error:
            raise ApiError(f"{self.url}: {error}", code="unexpected_answer") from error


def persist(read: Callable[[], T], *, patience_seconds: float, on_lost: Callable[[ApiError], None] | None) -> T:
    """What `read` gives, although connection, server or database are away meanwhile; ApiError after so long.

    `on_lost` hears of it once. For what may be sent again without harm only.
    """
    deadline: float | None = None
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return read()
        except ApiError as error:
            if not error.is_temporary:
                raise
            if deadline is None:
                deadline = time.monotonic() + patience_seconds
                if on_lost is not None:
                    on_lost(error)
            left = deadline - time.monotonic()
            if left <= 0:
                message = f"given up after {patience_seconds:g} s: {error.message}"
                raise ApiError(message, code=error.code, status=error.status, details=error.details) from error
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
