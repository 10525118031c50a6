"""Refuses requests for a host that this service is not, before anything else looks at them.

A page of another site can give a name of its own this machine's address (DNS rebinding); its browser then believes that
both are one site. The name in the header is still that of the other. An address in its place is always
right: no page of another site has ours.
"""

import ipaddress
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import build_error_response
from jobs.settings import Settings

_PORT = re.compile(r":\d+$")
_EVERYWHERE = {"0.0.0.0", "[::]"}
"""Addresses to listen on, and no names of a host."""


def list_allowed_hosts(settings: Settings) -> frozenset[str]:
    """Without ports, in lower case."""
    names = ["localhost", *settings.allowed_hosts, settings.host]
    if settings.public_url is not None:
        names.append(urlsplit(settings.public_url).netloc.rpartition("@")[2])
    return frozenset(_normalise(name) for name in names) - _EVERYWHERE


class HostGuard:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, allowed_hosts: frozenset[str]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_allowed(Headers(scope=scope).getlist("host")):
            await self._app(scope, receive, send)
            return
        response = build_error_response(
            400,
            "invalid_request_error",
            "unknown_host",
            "this service does not answer under that name; the operator can add it to MEDTUNE_ALLOWED_HOSTS",
            param="Host",
        )
        await response(scope, receive, send)

    def _is_allowed(self, hosts: list[str]) -> bool:
        """Exactly one: of two, a proxy may have looked at the other."""
        if len(hosts) != 1:
            return False
        host = _normalise(hosts[0])
        return "*" in self._allowed_hosts or host in self._allowed_hosts or _is_address(host)


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        return False


def _normalise(host: str) -> str:
    host = host.strip().lower()
    if host.count(":") > 1 and not host.startswith("["):
        return f"[{host}]"  # An address to listen on, as MEDTUNE_HOST has it.
    return _PORT.sub("", host).removesuffix(".")
