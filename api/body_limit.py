"""Refuses bodies that are too large: by their announced length at once, else while they come in."""

import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON_BYTES = 1 << 20
"""Largest body of a request that uploads no file."""

UPLOAD_PATHS = re.compile(r"/datasets|/v1/files|/v1/uploads/[^/]+/parts")
"""The routes with large bodies; they ask for the key before they read."""

MULTIPART_BYTES = 1 << 20
"""Room for what surrounds the file in an upload."""


class BodyLimit:
    """ASGI middleware. The error passes through the application's own handlers."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self._app = app
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = self._limit(scope, receive)
        await self._app(scope, receive, send)

    def _limit(self, scope: Scope, receive: Receive) -> Receive:
        headers = Headers(scope=scope)
        is_upload = (
            scope["method"] == "POST"
            and UPLOAD_PATHS.fullmatch(scope["path"]) is not None
            and headers.get("content-type", "").lower().startswith("multipart/form-data")
        )
        limit = self._max_upload_bytes + MULTIPART_BYTES if is_upload else JSON_BYTES
        announced = int(headers["content-length"]) if headers.get("content-length", "").isdigit() else 0
        received = 0

        async def limited() -> Message:
            nonlocal received
            if announced > limit:
                raise _too_large(limit)
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        return limited


def _too_large(limit: int) -> HTTPException:
    # The rest of the body is not read, so the connection cannot be used again.
    return HTTPException(413, f"the body is larger than {limit} bytes", headers={"Connection": "close"})
