"""Where a webhook may go. A tenant names the URL and the service opens it: without these rules it would reach what only
the service can reach.

Looked at twice, when the URL is registered and at each sending; then the connection goes to the address that was looked
at, so that a name that changes meanwhile leads nowhere else.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from jobs.errors import InvalidRequest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL = 2000
_TEXT = re.compile(r"[!-\[\]-~]+", re.ASCII)
"""Visible ASCII without the backslash, which some programs read as a slash."""
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+", re.ASCII)
_PORTS = {"https": 443, "http": 80}
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_REFUSED: tuple[Network, ...] = (
    ipaddress.IPv6Network("2002::/16"),  # 6to4: an IPv4 address inside
    ipaddress.IPv6Network("2001::/23"),  # Teredo and others of the kind
    ipaddress.IPv4Network("192.0.0.0/24"),  # of protocols; the metadata of a cloud, too
    ipaddress.IPv4Network("192.88.99.0/24"),  # relays of 6to4
    ipaddress.IPv4Network("168.63.129.16/32"),  # the metadata of a cloud, at a public address
)


@dataclass(frozen=True)
class Target:
    scheme: str
    host: str
    """A name, or an address without brackets."""
    port: int
    path: str
    """With the query."""

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_target(url: str, *, allow_http: bool) -> Target:
    """Raises InvalidRequest."""
    try:
        if len(url) > MAX_URL or not _TEXT.fullmatch(url):
            raise _refuse(f"its characters must be visible ASCII without backslashes, {MAX_URL} at most")
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _refuse("host or port cannot be read") from None
    if parts.scheme not in _PORTS or (parts.scheme == "http" and not allow_http):
        raise _refuse("it must begin with https://" + (" or http://" if allow_http else ""))
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise _refuse("it must have neither user, password nor fragment")
    if not host or not _HOST.fullmatch(host) or port == 0:
        raise _refuse("it has no host, or one with characters that no host has")
    path = parts.path or "/"
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], f"{path}?{parts.query}" if parts.query else path)


def find_address(target: Target, allowed: Sequence[Network]) -> str:
    """Asks the name service once, for as long as that takes. Raises InvalidRequest."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        remedy = "check the name, or try again when the name service answers"
        raise InvalidRequest(
            "webhook_host_unknown", f"no address is known for {target.host}", param="url", remedy=remedy
        ) from None
    for *_, (address, *_) in found:
        if is_allowed(ipaddress.ip_address(str(address).partition("%")[0]), allowed):
            return str(address)
    message = f"{target.host} is in a network that webhooks may not reach"
    remedy = "use a public address; or the operator adds the network to MEDTUNE_WEBHOOK_ALLOWED_NETWORKS"
    raise InvalidRequest("webhook_address_refused", message, param="url", remedy=remedy)


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """A public address of one host; or one that the operator allows, whatever it is."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in allowed):
        return True
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_IPV6:
        return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _REFUSED)


def _refuse(why: str) -> InvalidRequest:
    return InvalidRequest("invalid_webhook_url", f"the URL cannot be used: {why}", param="url")
